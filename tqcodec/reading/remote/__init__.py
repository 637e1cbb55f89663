"""Files at addresses: `https://` by requests of our own, all others by fsspec.

Imported only where a file has an address; urllib3 and fsspec (`tqcodec[remote]`) only here.
"""
