"""The page that shows the API's document. Its script is served from here: the reader may have no internet,
and a foreign script would see the admin key that is typed into the page.
"""

from importlib.resources import files
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Path, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_TYPES: Final = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
Asset = Annotated[Literal["swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"], Path()]


@router.get("/docs")
def show() -> HTMLResponse:
    """The page; it reads `/openapi.json`."""
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="taas admin API",
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="docs/favicon.png",
    )


@router.get("/docs/{asset}")
def read_asset(asset: Asset) -> Response:
    """A part of the page."""
    content = files("fastapi_offline").joinpath("static", asset).read_bytes()
    return Response(content, media_type=_TYPES[asset], headers={"cache-control": "max-age=3600"})
