"""The client that waits for a notebook's cells. pyzmq sometimes misses that a message has come, for its sockets signal it only once: the
message lies in the socket, the kernel is idle, and nbclient waits for ever."""

from queue import Empty

from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from traitlets import Type

SECONDS = 1.0  # after which a message that came without a signal is found


class PollingChannel(AsyncZMQSocketChannel):
    """A channel that looks for itself now and then, also where it may wait for ever."""

    async def get_msg(self, timeout: float | None = None) -> dict:
        """The next message; queue.Empty after `timeout` seconds, if it is not None."""
        while timeout is None or timeout > SECONDS:
            try:
                return await super().get_msg(SECONDS)
            except Empty:
                timeout = timeout and timeout - SECONDS
        return await super().get_msg(timeout)


class PollingClient(AsyncKernelClient):
    """jupyter_client's, with channels that look for themselves."""

    shell_channel_class = Type(PollingChannel)
    iopub_channel_class = Type(PollingChannel)
