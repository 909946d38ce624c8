"""POST /predict and its limits, /health, and /openapi.json, which says what they answer."""

import asyncio
import json

import pytest
from asking import NO_IMAGE, Held, asked, expected, loaded, opened, picture, posted
from PIL import Image

from cifar_lightning.serve import uploads


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return loaded(tmp_path_factory.mktemp("ckpt"))


@pytest.fixture
def app(predictor):
    with opened(predictor) as (app, _):
        yield app


def assert_fits(content, schema, document):
    """Assert that an answer is as the document says."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": int | float, "boolean": bool}
    assert isinstance(content, kinds[schema["type"]])
    if schema["type"] == "object":
        assert set(schema["required"]) == set(schema["properties"]) == set(content)
        for key, value in content.items():
            assert_fits(value, schema["properties"][key], document)
    elif schema["type"] == "array":
        for value in content:
            assert_fits(value, schema["items"], document)
    assert content in schema.get("enum", [content])
    if schema["type"] == "number":
        assert schema.get("minimum", content) <= content <= schema.get("maximum", content)


def assert_documented(app, response, name=None):
    """Assert that a status and the form of its answer are those of /openapi.json."""
    document = asked(app, lambda client: client.get("/openapi.json")).json()
    answers = document["paths"][response.request.url.path][response.request.method.lower()]["responses"]
    schema = answers[str(response.status_code)]["content"]["application/json"]["schema"]
    if "anyOf" in schema:
        schema = next(one for one in schema["anyOf"] if one["$ref"].endswith(f"/{name}"))
    assert_fits(response.json(), schema, document)


def test_answers_are_the_predictor_s(app, predictor):
    exif = Image.Exif()
    exif[274] = 6
    files = {
        "plain.png": picture(1),
        "large.jpg": picture(2, (90, 60), "JPEG", exif=exif),
        "same.webp": picture(3, (40, 40), "WEBP"),
    }
    for name, content in files.items():
        response = posted(app, (name, content), path="/predict?topk=3")
        assert response.status_code == 200
        prediction = expected(predictor, content, 3)
        top = [{"class": label, "probability": prob} for label, prob in prediction.top]
        answer = {"file": name, "class": prediction.label, "probability": prediction.prob, "top": top}
        assert response.json() == {"predictions": [answer]}
    assert_documented(app, response)


def test_files_keep_their_order_and_their_names(app, predictor):
    contents = [picture(seed) for seed in range(8)]
    names = ["b.png", "a.png", "a.png", "<img src=x>.png", "ü — 猫.png", "x" * 200, "../../etc/passwd", "a;b=c.png"]
    response = posted(app, *zip(names, contents, strict=True))
    predictions = response.json()["predictions"]
    assert [entry["file"] for entry in predictions] == names
    for entry, content in zip(predictions, contents, strict=True):
        prediction = expected(predictor, content)
        assert entry["class"] == prediction.label
        assert entry["probability"] == pytest.approx(prediction.prob, abs=1e-6)
        assert len(entry["top"]) == 5


def test_topk_is_bounded_by_the_classes(app):
    assert len(posted(app, ("a", picture()), path="/predict?topk=99").json()["predictions"][0]["top"]) == 10


def test_what_is_no_image_is_named_and_the_others_are_classified(app, predictor):
    files = [("a.png", picture(1)), ("b.png", NO_IMAGE), ("c.png", b""), ("d.png", picture(2)), ("e", picture(3)[:99])]
    response = posted(app, *files)
    assert response.status_code == 422
    content = response.json()
    assert [entry["file"] for entry in content["predictions"]] == ["a.png", "d.png"]
    assert content["error"] == "3 of 5 files cannot be read as images"
    assert [(entry["file"], entry["index"]) for entry in content["errors"]] == [("b.png", 1), ("c.png", 2), ("e", 4)]
    reasons = [entry["error"] for entry in content["errors"]]
    assert reasons[:2] == ["a web page, not an image", "empty"]
    assert_documented(app, response, "PartialPredictions")


def test_a_picture_of_too_many_pixels_is_named(predictor):
    with opened(predictor, max_pixels=5_000) as (app, _):
        response = posted(app, ("bomb.png", picture(0, (100, 51))), ("fine.png", picture(0, (100, 50))))
    assert response.status_code == 422
    assert response.json()["errors"] == [
        {"file": "bomb.png", "index": 0, "error": "more than 5,000 pixels: save it smaller"}
    ]
    assert [entry["file"] for entry in response.json()["predictions"]] == ["fine.png"]


FORM = "multipart/form-data; boundary=b"
START = b'--b\r\nContent-Disposition: form-data; filename="a"\r\n\r\n'


@pytest.mark.parametrize(
    ("status", "options", "words"),
    [
        (413, {"files": [("f", ("a.png", bytes(1_000_001)))]}, "more than 1 MB"),
        (413, {"files": [("f", (f"{i}.png", b"")) for i in range(9)]}, "more than 8 files"),
        (413, {"data": {f"field{i}": "" for i in range(101)}, "files": [("f", ("a", b""))]}, "more than 100 fields"),
        (415, {"content": picture(), "headers": {"content-type": "image/png"}}, "multipart/form-data"),
        (415, {"content": b"", "headers": {"content-type": "multipart/form-data"}}, "multipart/form-data"),
        (400, {"content": b"nonsense", "headers": {"content-type": FORM}}, "not whole"),
        (400, {"content": START, "headers": {"content-type": FORM}}, "not whole"),
        (400, {"content": b"", "headers": {"content-type": FORM + "b" * 999}}, "not whole"),
        (422, {"content": b"--b--\r\n", "headers": {"content-type": FORM}}, "no files"),
        (422, {"files": [("f", ("a", b""))], "params": {"topk": "0"}}, "topk"),
        (422, {"files": [("f", ("a", b""))], "params": {"topk": "many"}}, "topk"),
        (403, {"files": [("f", ("a", b""))], "headers": {"origin": "https://example.org"}}, "other sites"),
        (403, {"files": [("f", ("a", b""))], "headers": {"origin": "null"}}, "other sites"),
        (403, {"files": [("f", ("a", b""))], "headers": {"origin": "http://[bad"}}, "other sites"),
    ],
)
def test_requests_that_are_refused(app, status, options, words):
    response = posted(app, **options)
    assert response.status_code == status
    assert words in response.json()["error"]
    assert_documented(app, response, "Error")


def test_the_size_is_that_of_what_comes_and_not_of_what_is_announced(app):
    async def chunks():
        yield START
        for _ in range(20):
            yield bytes(100_000)

    assert posted(app, content=chunks(), headers={"content-type": FORM}).status_code == 413


def test_all_bodies_together_are_bounded(predictor, monkeypatch):
    monkeypatch.setattr("cifar_lightning.serve.app.BODIES_AT_ONCE", 0.001)
    with opened(predictor) as (app, _):
        response = posted(app, ("a.png", picture()))
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert posted(app, ("a.png", NO_IMAGE)).status_code == 422  # nothing of the other is held


def test_a_client_that_sends_nothing_is_given_up(app, monkeypatch):
    monkeypatch.setattr(uploads, "IDLE_SECONDS", 0.05)

    async def chunks():
        yield b"--b\r\n"
        await asyncio.sleep(60)

    response = posted(app, content=chunks(), headers={"content-type": FORM})
    assert response.status_code == 408
    assert_documented(app, response)


def test_its_own_page_may_ask(app):
    assert posted(app, ("a.png", picture()), headers={"origin": "http://localhost:8000"}).status_code == 200


def test_requests_of_one_moment_are_one_batch_and_further_ones_are_refused(predictor, monkeypatch):
    held = Held(predictor, monkeypatch)

    async def ask(client):
        first = asyncio.create_task(client.post("/predict", files={"f": picture()}))
        await asyncio.to_thread(held.called.wait, 60)
        others = [asyncio.create_task(client.post("/predict", files={"f": picture(seed)})) for seed in range(9)]
        while (health := (await client.get("/health")).json())["queue"] < 10:
            await asyncio.sleep(0.01)
        refused = await client.post("/predict", files={"f": picture()})
        held.let_go.set()
        return health, refused, [await request for request in (first, *others)]

    with opened(predictor, wait_ms=60_000, max_waiting=10) as (app, desk):
        health, refused, responses = asked(app, ask)
        assert desk.num_waiting == 0
        assert_documented(app, refused)
    assert held.sizes == [1, 9]
    assert [response.status_code for response in responses] == [200] * 10
    assert health["status"] == "busy"
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"


def test_a_failure_of_the_network_is_one_line(predictor, monkeypatch, caplog):
    def fail(images, **options):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(predictor, "probs", fail)
    with opened(predictor) as (app, _):
        response = posted(app, ("a.png", picture()))
        assert_documented(app, response)
    assert response.status_code == 500
    assert "memory" not in response.text
    assert [record.getMessage() for record in caplog.records] == ["a request failed: RuntimeError: out of memory"]


def test_health(app):
    response = asked(app, lambda client: client.get("/health"))
    about = response.json()
    assert (about["status"], about["model"], about["classes"], about["queue"]) == ("ok", "test", 10, 0)
    assert about["calibrated"] is False
    assert_documented(app, response)


def test_a_temperature_is_behind_the_probabilities(tmp_path, predictor):
    with opened(loaded(tmp_path, temperature=0.5)) as (app, _):
        about = asked(app, lambda client: client.get("/health"))
        assert about.json()["calibrated"] is True
        (answer,) = posted(app, ("a.png", picture(1)), path="/predict?topk=10").json()["predictions"]
    plain = dict(expected(predictor, picture(1), 10).top)
    total = sum(prob**2 for prob in plain.values())
    assert {one["class"]: one["probability"] for one in answer["top"]} == pytest.approx(
        {label: prob**2 / total for label, prob in plain.items()}, rel=1e-5
    )


def test_every_answer_has_the_headers_that_keep_the_page_to_itself(app):
    for path in ("/", "/style.css", "/page.js", "/icon.svg", "/openapi.json", "/health", "/nothing"):
        response = asked(app, lambda client, path=path: client.get(path))
        assert response.status_code == (404 if path == "/nothing" else 200)
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in response.headers
    page = asked(app, lambda client: client.get("/")).text
    assert "style=" not in page
    assert "//" not in page.replace("</", "")
    assert asked(app, lambda client: client.get("/predict")).status_code == 405


def test_another_name_of_this_machine_is_not_answered(app, predictor):
    async def ask(client):
        return await client.get("/health", headers={"host": "rebound.example.org"})

    assert asked(app, ask).status_code == 400
    with opened(predictor, hosts=None) as (app, _):
        assert asked(app, ask).status_code == 200


def test_a_grey_checkpoint_answers(tmp_path):
    predictor = loaded(tmp_path, channels=1)
    with opened(predictor) as (app, _):
        [answer] = posted(app, ("a.png", picture(4))).json()["predictions"]
    prediction = expected(predictor, picture(4))
    assert (answer["class"], answer["probability"]) == (prediction.label, prediction.prob)


def test_names_that_cannot_be_encoded(app):
    body = b'--b\r\nContent-Disposition: form-data; filename="\xff\xfe.png"\r\n\r\n' + picture() + b"\r\n--b--\r\n"
    response = posted(app, content=body, headers={"content-type": FORM})
    assert response.json()["predictions"][0]["file"] == "ÿþ.png"
    assert json.loads(response.content)
