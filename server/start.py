"""The start of a server: the engine process first, for it takes the longest.

While it loads, this process reads its own modules and what it needs of the checkpoint: hence the
imports in the middle.
"""

from __future__ import annotations

import asyncio

from .client import EngineClient
from .config import ServerConfig
from .listen import Listen
from .listener import Listener
from .logs import LoopErrors
from .wire import LoadFailed


async def start(config: ServerConfig, listen: Listen, sock: Listener) -> LoadFailed | None:
    """Serves on `sock` until a signal comes; what was wrong when the engine could not be loaded.

    CheckpointError for a model that is unusable.
    """
    asyncio.get_running_loop().set_exception_handler(LoopErrors())
    client = EngineClient(config.model, config.engine, config.silence_s, config.pace_s)
    client.start()
    try:
        await client.launched()
        if client.failure is not None:
            return client.failure
        from .run import serve
        from .service import Service

        service = Service(config, client)
        try:
            loaded = await serve(service, listen, sock)
        finally:
            service.close()
    finally:
        await client.close()
    return None if loaded else client.failure or LoadFailed("the engine failed", ours=False)
