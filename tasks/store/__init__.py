"""The ground floor: content-addressed folders that stages hand to each other.

identity.py  what decides a stage's result, and the key made of it
artifact.py  a finished folder, its manifest, and how it is written whole or not at all
caching.py   Prefect's cache on top of the two
"""
