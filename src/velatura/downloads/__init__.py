"""Download models from Civitai, the Hugging Face hub and plain URLs: resumed, checked by hash, put into A1111's or
ComfyUI's folders.

pull.py is the entry point and the file to open first; fetch.py writes into one folder, transfer.py downloads one
file. web_client.py is the only file that sends HTTP requests.
"""
