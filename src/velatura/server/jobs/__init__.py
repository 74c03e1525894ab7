"""Jobs: what a request asks for, a queue of them in SQLite, their events, and the threads that run them.

service.py is what routes talk to and the file to open first. job.py is a job's value, requests.py and its neighbours
what each kind asks for, kinds.py the table of kinds, worker.py the threads. runners/ has the functions that run jobs.
"""
