"""The server over loopback: who waits, who goes, and that nothing is lost under load."""

import asyncio
import socket
import threading
import time

import httpx
import pytest
from asking import NO_IMAGE, Held, expected, loaded, opened, picture, running
from PIL import Image

from cifar_lightning.errors import UserError
from cifar_lightning.serve.server import address_of, is_private, listen


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return loaded(tmp_path_factory.mktemp("ckpt"))


def load(address, num_requests, num_clients, contents):
    """Status and file name of each request by its number; each client sends one after the other."""
    answers = {}

    async def client_loop(numbers):
        async with httpx.AsyncClient(base_url=address, timeout=120) as client:
            for number in numbers:
                files = {"f": (f"{number}.png", contents[number % len(contents)])}
                response = await client.post("/predict", files=files)
                answers[number] = response.status_code, response.json()

    async def run():
        await asyncio.gather(*(client_loop(range(i, num_requests, num_clients)) for i in range(num_clients)))

    asyncio.run(run())
    return answers


@pytest.mark.parametrize("num_requests", [200, pytest.param(2_000, marks=pytest.mark.slow)])
def test_a_load_with_bad_files_loses_none(predictor, num_requests):
    contents = [picture(seed) for seed in range(99)] + [NO_IMAGE]
    labels = [expected(predictor, content).label for content in contents[:-1]]
    with running(predictor) as (address, desk):
        answers = load(address, num_requests, 16, contents)
        assert desk.num_waiting == 0
    assert len(answers) == num_requests
    for number, (status, content) in answers.items():
        if number % 100 == 99:
            assert status == 422
            assert content["errors"][0]["file"] == f"{number}.png"
        else:
            assert status == 200
            [prediction] = content["predictions"]
            assert (prediction["file"], prediction["class"]) == (f"{number}.png", labels[number % 100])


def request_of(content, *, extra=b""):
    body = b'--b\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n' + content + b"\r\n--b--\r\n"
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    return head + b"Content-Length: %d\r\n%s\r\n" % (len(body), extra), body


def connected(address):
    return socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=60)


def is_refused(address):
    try:
        connected(address).close()
    except ConnectionRefusedError:
        return True
    return False


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_client_that_goes_costs_nothing_more(predictor, monkeypatch):
    held = Held(predictor, monkeypatch)
    with running(predictor, wait_ms=0) as (address, desk):
        with connected(address) as first:
            first.sendall(b"".join(request_of(picture())))
            assert held.called.wait(60)
            with connected(address) as gone:
                gone.sendall(b"".join(request_of(picture())))
                wait_until(lambda: desk.num_waiting == 2)
            wait_until(lambda: desk.num_waiting == 1)
            held.let_go.set()
            assert first.recv(1_000).startswith(b"HTTP/1.1 200")
        wait_until(lambda: desk.num_waiting == 0)
    assert held.sizes == [1]


def test_a_client_that_goes_while_it_sends_leaves_nothing(predictor):
    with running(predictor) as (address, _):
        with connected(address) as gone:
            head, body = request_of(picture())
            gone.sendall(head + body[:500])
        assert httpx.get(f"{address}/health").json()["queue"] == 0


def test_a_client_that_sends_too_much_comes_to_reading_why(predictor):
    with running(predictor) as (address, _):
        response = httpx.post(f"{address}/predict", files={"f": bytes(5_000_000)})
        assert response.status_code == 413
        with connected(address) as polite:  # as curl asks before it sends much
            head, _ = request_of(bytes(2_000_000), extra=b"Expect: 100-continue\r\n")
            polite.sendall(head)
            assert polite.recv(1_000).startswith(b"HTTP/1.1 413")


def test_leaving_answers_what_runs_and_takes_nothing_new(predictor, monkeypatch):
    held = Held(predictor, monkeypatch)

    def let_go_once_closed(address):
        wait_until(lambda: is_refused(address))
        held.let_go.set()

    with running(predictor) as (address, _):
        request = connected(address)
        request.sendall(b"".join(request_of(picture())))
        assert held.called.wait(60)
        thread = threading.Thread(target=let_go_once_closed, args=(address,))
        thread.start()
    thread.join()
    with request:
        assert request.recv(1_000).startswith(b"HTTP/1.1 200")


def test_a_port_that_is_taken_is_told():
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port={port} on 127.0.0.1: .*in use; port=0 takes a free one"):
            listen("127.0.0.1", port)


def test_a_host_that_is_none_is_told():
    with pytest.raises(UserError, match="host=nowhere: no such name"):
        listen("nowhere", 0)


@pytest.mark.parametrize(("host", "private"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)])
def test_who_can_reach_an_address(host, private):
    with listen(host, 0) as listener:
        assert is_private(listener) == private
        assert address_of(listener).startswith("http://")


def test_desks_put_back_what_they_set(predictor):
    before = Image.MAX_IMAGE_PIXELS
    with opened(predictor):
        assert Image.MAX_IMAGE_PIXELS == 2_000_000
    assert before == Image.MAX_IMAGE_PIXELS
