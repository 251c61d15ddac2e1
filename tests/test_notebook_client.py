"""A message whose signal was missed is found."""

import asyncio
import time
from queue import Empty

import pytest
import zmq
import zmq.asyncio
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.session import Session

from icthp import notebook_client, run


async def receive(channel_class, timeout=None):
    """What a channel gets whose socket's signal somebody else has taken, as pyzmq may do: `EVENTS`, read, takes it."""
    context, session = zmq.asyncio.Context(), Session(key=b"")
    ours, theirs = context.socket(zmq.PAIR), zmq.Context.shadow(context.underlying).socket(zmq.PAIR)
    try:
        port = ours.bind_to_random_port("tcp://127.0.0.1")
        theirs.connect(f"tcp://127.0.0.1:{port}")
        waiting = asyncio.ensure_future(channel_class(ours, session).get_msg(timeout=timeout))
        await asyncio.sleep(0.2)
        session.send(theirs, "execute_reply")
        end = time.monotonic() + 10
        while not ours._shadow_sock.get(zmq.EVENTS) & zmq.POLLIN and time.monotonic() < end:
            time.sleep(0.01)  # the loop does not run meanwhile
        return (await asyncio.wait_for(waiting, 5))["msg_type"]
    finally:
        ours.close(linger=0)
        theirs.close(linger=0)


@pytest.mark.parametrize("timeout", [None, 60])
def test_a_message_without_a_signal_is_found(timeout):
    assert asyncio.run(receive(notebook_client.PollingChannel, timeout)) == "execute_reply"


def test_the_library_s_own_channel_does_not_find_it():
    """When this fails, notebook_client can go."""
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(receive(AsyncZMQSocketChannel))


@pytest.mark.parametrize("timeout", [0, 0.2, 1.5])
def test_no_message_is_empty_after_the_time(timeout):
    async def nothing():
        context = zmq.asyncio.Context()
        socket = context.socket(zmq.PAIR)
        try:
            await notebook_client.PollingChannel(socket, Session(key=b"")).get_msg(timeout=timeout)
        finally:
            socket.close(linger=0)

    start = time.monotonic()
    with pytest.raises(Empty):
        asyncio.run(nothing())
    assert timeout <= time.monotonic() - start < timeout + 1


def test_notebooks_are_run_with_it():
    assert run.KERNEL.KernelManager.client_factory is notebook_client.PollingClient
