"""Content-addressed folders that stages hand to each other.

identity.py  what decides a stage's result, and the key made of it
artifact.py  a finished folder with its manifest; it is complete or absent
caching.py   Prefect's cache on top of the two
"""
