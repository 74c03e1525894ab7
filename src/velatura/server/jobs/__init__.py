"""Jobs: what a request asks for, a queue of them in SQLite, their events, and the threads that run them.

service.py is what routes talk to and the file to open first. job.py is a job's value, requests.py what each kind asks
for, kinds.py the table of kinds, worker.py the threads, and paint.py and its neighbours run one kind each.
"""
