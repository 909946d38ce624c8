"""Images are classified together: those that wait, and those that are on their way."""

import threading
from concurrent.futures import Future

import pytest
import torch
from asking import LONG_MS

from cifar_lightning.serve.batching import Batcher


class Network:
    """Counts the images of each call; the first call waits until it is let go."""

    def __init__(self):
        self.sizes = []
        self.called, self.let_go = threading.Event(), threading.Event()

    def __call__(self, images):
        self.sizes.append(len(images))
        self.called.set()
        assert self.let_go.wait(60)
        return images[:, 0, 0, :1].float()


def image(value):
    return torch.full((3, 2, 2), value, dtype=torch.uint8)


def submitted(batcher, values):
    answers = [Future() for _ in values]
    for value, answer in zip(values, answers, strict=True):
        batcher.submit(image(value), answer)
    return answers


@pytest.mark.parametrize(("batch_size", "sizes"), [(100, [1, 9]), (4, [1, 4, 4, 1])])
def test_what_waits_for_the_network_is_the_next_batch(batch_size, sizes):
    network = Network()
    with Batcher(network, batch_size=batch_size, wait_ms=0) as batcher:
        batcher.expect(10)
        answers = submitted(batcher, [0])
        assert network.called.wait(60)
        answers += submitted(batcher, range(1, 10))
        network.let_go.set()
        assert [int(answer.result(60)) for answer in answers] == list(range(10))
    assert network.sizes == sizes


def test_an_idle_network_waits_for_what_is_on_its_way():
    network = Network()
    network.let_go.set()
    with Batcher(network, batch_size=100, wait_ms=LONG_MS) as batcher:
        batcher.expect(4)
        answers = submitted(batcher, [1, 2, 3])
        assert not network.called.is_set()
        batcher.give_up()
        assert [int(answer.result(60)) for answer in answers] == [1, 2, 3]
        batcher.expect(1)
        assert int(submitted(batcher, [7])[0].result(60)) == 7  # nothing else comes, so it does not wait
    assert network.sizes == [3, 1]


def test_a_full_batch_waits_for_nothing():
    network = Network()
    network.let_go.set()
    with Batcher(network, batch_size=2, wait_ms=LONG_MS) as batcher:
        batcher.expect(3)
        assert [int(answer.result(60)) for answer in submitted(batcher, [1, 2])] == [1, 2]
    assert network.sizes == [2]


def test_it_waits_no_longer_than_it_may():
    network = Network()
    network.let_go.set()
    with Batcher(network, batch_size=2, wait_ms=1) as batcher:
        batcher.expect(2)
        assert int(submitted(batcher, [1])[0].result(60)) == 1


def test_what_is_cancelled_is_not_classified():
    network = Network()
    with Batcher(network, batch_size=100, wait_ms=0) as batcher:
        batcher.expect(4)
        first = submitted(batcher, [0])
        assert network.called.wait(60)
        answers = submitted(batcher, [1, 2, 3])
        assert answers[1].cancel()
        network.let_go.set()
        assert [int(answer.result(60)) for answer in (*first, answers[0], answers[2])] == [0, 1, 3]
    assert network.sizes == [1, 2]


def test_leaving_answers_what_was_handed_in_and_refuses_more():
    network = Network()
    with Batcher(network, batch_size=1, wait_ms=LONG_MS) as batcher:
        batcher.expect(4)
        answers = submitted(batcher, [1, 2, 3])
        assert network.called.wait(60)
        network.let_go.set()
    assert [int(answer.result(0)) for answer in answers] == [1, 2, 3]
    with pytest.raises(RuntimeError, match="closed"):
        submitted(batcher, [4])


def test_an_error_goes_to_the_images_of_its_batch_alone():
    faults = [RuntimeError("out of memory"), None]

    def network(images):
        if fault := faults.pop(0):
            raise fault
        return images[:, 0, 0, :1].float()

    with Batcher(network, batch_size=100, wait_ms=LONG_MS) as batcher:
        batcher.expect(2)
        for answer in submitted(batcher, [1, 2]):
            with pytest.raises(RuntimeError, match="out of memory"):
                answer.result(60)
        batcher.expect(1)
        assert int(submitted(batcher, [3])[0].result(60)) == 3
