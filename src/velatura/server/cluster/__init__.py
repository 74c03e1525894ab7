"""Jobs on a Ray cluster: the queue and the database stay here, and actors on other machines run the jobs.

pool.py is what the server starts and the file to open first. worker.py has the threads that hand jobs to actors,
follow.py what they do with a job, actor.py what runs in a worker of the cluster, messages.py what the two exchange.
"""
