"""What the product found, in the words of the API: values of the product in, JSON without paths out.

datasets.py shows a check, runs.py a training, studies.py a study and its report; routes and jobs both use them.
"""
