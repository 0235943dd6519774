"""What this project relies on in other libraries beyond their documented interfaces, one test per name.

A test fails when a private attribute, method, operator or text is gone or means something else. `make upstream` runs
them against the newest releases. These contracts stand elsewhere, because the feature's own test exercises them:

    Prefect      registry of serializers, UnknownSerializer, file of a cached record    store/test_caching.py
    Prefect      PREFECT_SERVER_API_AUTH_STRING, allowed origins, the socket it is given    flows/test_surroundings.py
    torch        layers that take turns in gathering weights (FSDP2, DTensor)           training/test_sharding.py
    torch        errors and exit codes of the elastic launcher                          training/test_processes.py
    torch        text of a full disk's error; the same of safetensors                   test_failures.py
    clients      names of network errors in httpx, requests, urllib3, aiohttp, fsspec   test_failures.py
    transformers layers of every architecture, logit scales and caps                    training/test_architectures.py
    transformers `rope_type`, and models that compute otherwise token by token          evaluation/test_engine.py
    pydantic     types and texts of validation errors; resolvers of PyYAML's loader     flows/test_command.py
"""
