"""What is compared with: the proxy that one would write first, FastAPI and aiohttp, without keys, limits or metering.

`BENCH_BACKEND=http://… uvicorn loadtest.bench.naive:build --factory`.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import orjson
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse


def build() -> FastAPI:
    """The app; the backend comes from the environment, since uvicorn passes no arguments."""
    backend = os.environ["BENCH_BACKEND"]

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
