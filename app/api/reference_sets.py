"""The route that uploads a reference set, and the set that a request names. Must not know what it is for."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from app.api.schemas import ModelIn, ReferenceOut
from app.api.services import Services, ServicesDep
from app.validation.references import as_jsonl, parse_jsonl
from salem.errors import BlobMissing, InvalidRequest, Pointer
from salem.records import Sha256

router = APIRouter(tags=["references"])

REFERENCE_MISSING = "give either `reference`, a list of labeled samples, or `reference_sha256` of an upload"
JSONL_BODY = {
    "requestBody": {"required": True, "content": {"application/x-ndjson": {"schema": {"type": "string"}}}}
}


async def raw_body(request: Request) -> bytes:
    """The raw body, whatever its content type."""
    return await request.body()


@router.post("/references", status_code=201, openapi_extra=JSONL_BODY)
def upload_reference(services: ServicesDep, body: Annotated[bytes, Depends(raw_body)]) -> ReferenceOut:
    """Upload a reference set, one sample per line. `POST /models` names it by the sha256 returned here."""
    data = as_jsonl(parse_jsonl(body))
    return ReferenceOut(sha256=services.blobs.put(data), num_samples=data.count(b"\n"))


def reference_set(request: ModelIn, services: Services) -> bytes:
    """The request's reference set, in the form that is stored."""
    if (request.reference is None) == (request.reference_sha256 is None):
        place = Pointer("/reference", REFERENCE_MISSING)
        raise InvalidRequest(f"/reference: {REFERENCE_MISSING}", errors=[place])
    if request.reference is not None:
        return as_jsonl(request.reference, "/reference")
    assert request.reference_sha256 is not None
    return _uploaded(request.reference_sha256, services)


def _uploaded(sha256: Sha256, services: Services) -> bytes:
    """An uploaded reference set, checked again: the store also holds other files."""
    try:
        return as_jsonl(parse_jsonl(services.blobs.get(sha256)))
    except (BlobMissing, InvalidRequest) as error:
        absent = "no uploaded file has this sha256; unused uploads are deleted after a while"
        wrong_file = f"the file with this sha256 is not a reference set: {error.message}"
        place = Pointer("/reference_sha256", absent if isinstance(error, BlobMissing) else wrong_file)
        raise InvalidRequest(
            f"{place.pointer}: {place.detail}",
            remedy="Upload a reference set with POST /references",
            errors=[place],
        ) from error
