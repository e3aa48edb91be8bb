"""What is compared with: the proxy that one would write first, FastAPI and aiohttp, without keys, limits or
metering.

`python -m loadtest.bench.naive PORT BACKEND_URL`.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import orjson
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse


def build(backend: str) -> FastAPI:
    """The app in front of one backend."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            app.state.session = session
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.body()
        session: aiohttp.ClientSession = request.app.state.session
        headers = {"content-type": "application/json"}
        answer = await session.post(f"{backend}/v1/chat/completions", data=body, headers=headers)
        if orjson.loads(body).get("stream"):
            return StreamingResponse(answer.content.iter_any(), media_type="text/event-stream")
        return Response(await answer.read(), media_type="application/json")

    return app


if __name__ == "__main__":
    uvicorn.run(
        build(sys.argv[2]),
        port=int(sys.argv[1]),
        access_log=False,
        loop="uvloop",
        http="httptools",
        log_level="warning",
    )
