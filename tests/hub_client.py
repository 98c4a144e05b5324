"""What a user of the hub does, line by line: `huggingface_hub` reads HF_ENDPOINT at import."""

import contextlib
import hashlib
import io
import json
import sys

from dpwg.cli import main
from dpwg.method.encoders import find_encoder
from dpwg.method.pipeline import DPWaveletPipeline


def draw(name: str, revision: str | None = None, upsampler: str = "bicubic") -> str:
    pipe = DPWaveletPipeline.from_pretrained(name, revision=revision)
    image = pipe(["a face", "red hair"], seed=[7, 8], upsampler=upsampler).image
    return hashlib.sha256(image.tobytes()).hexdigest()


def push(folder: str, name: str, **options: object) -> str:
    return DPWaveletPipeline.from_pretrained(folder).push_to_hub(name, **options)


def encoder(name: str) -> dict[str, object]:
    return find_encoder(name).id.to_json()


def command(*arguments: str) -> list[object]:
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
        status = main(arguments)
    return [status, told.getvalue()]


for line in sys.stdin:
    call, given, options = json.loads(line)
    try:
        answer = {"answer": globals()[call](*given, **options)}
    except Exception as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer), flush=True)
