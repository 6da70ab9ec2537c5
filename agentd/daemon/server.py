"""The socket: connections, limits, and who may ask for what. What a method does is in :mod:`agentd.daemon.methods`."""

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from agentd import jobdir, protocol
from agentd.core.errors import AgentdError, Fault
from agentd.daemon.feed import Feed, Reader
from agentd.protocol import Malformed, Request

LINGER_S = 30.0
WAITING = ("jobs.wait", "events.subscribe", "lock.acquire")
"""What ends with its asker. Everything else that was begun is done to the end."""
Handler = Callable[["Connection", Request], Awaitable[Any]]


class Server:
    """All connections of the daemon. ``handle(connection, request)`` answers one request."""

    def __init__(self, handle: Handler, feed: Feed) -> None:
        self.loop = asyncio.get_running_loop()
        self.handle = handle
        self.feed = feed
        self.connections: set[Connection] = set()
        self.listeners: dict[str, socket.socket] = {}
        self.acting: set[asyncio.Task[Any]] = set()
        self.unread: dict[int, Connection] = {}
        self.hang_ups = select.epoll()
        self.loop.add_reader(self.hang_ups.fileno(), self._on_hang_ups)

    def listen(self, path: str, job: int | None = None) -> None:
        """Serve at ``path``; ``job``: the narrow socket of a job. An earlier listener there is replaced."""
        self.stop_listening(path)
        listener = jobdir.listen(path, backlog=1024)
        listener.setblocking(False)
        self.listeners[path] = listener
        self.loop.add_reader(listener.fileno(), self._accept, path, listener, job)

    def stop_listening(self, path: str) -> None:
        listener = self.listeners.pop(path, None)
        if listener is not None:
            self.loop.remove_reader(listener.fileno())
            listener.close()

    def _accept(self, path: str, listener: socket.socket, job: int | None) -> None:
        for _ in range(64):
            try:
                link, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError:
                # Out of descriptors: no busy loop, the backlog waits.
                self.loop.remove_reader(listener.fileno())
                self.loop.call_later(0.2, self._accept_again, path, listener, job)
                return
            if jobdir.peer_uid(link) != os.getuid():
                link.close()
                continue
            self._make_room()
            link.setblocking(False)
            connection = Connection(self, job)
            self.connections.add(connection)
            task = self.loop.create_task(self._connect(connection, link))
            connection.tasks.add(task)
            task.add_done_callback(connection.on_task_done)

    def _accept_again(self, path: str, listener: socket.socket, job: int | None) -> None:
        if self.listeners.get(path) is listener:
            self.loop.add_reader(listener.fileno(), self._accept, path, listener, job)

    async def _connect(self, connection: "Connection", link: socket.socket) -> None:
        try:
            await self.loop.connect_accepted_socket(lambda: connection, link)
        except OSError:
            self.connections.discard(connection)

    def _make_room(self) -> None:
        """At the limit, who has said nothing goes first; then who has nothing in flight."""
        if len(self.connections) < protocol.MAX_CONNECTIONS:
            return
        for is_expendable in (Connection.is_silent, Connection.is_idle):
            victim = next(filter(is_expendable, self.connections), None)
            if victim is not None:
                return victim.give_up()

    def watch_for_hang_up(self, connection: "Connection") -> None:
        """A client that is not read from, as it has finished asking or asks too much at once, is owed answers until
        it is gone altogether (it was killed, say). Its end of file would tell, but is not looked for."""
        if connection.fd not in self.unread:
            self.unread[connection.fd] = connection
            self.hang_ups.register(connection.fd, 0)

    def stop_watching(self, connection: "Connection") -> None:
        if self.unread.pop(connection.fd, None) is not None:
            self.hang_ups.unregister(connection.fd)

    def _on_hang_ups(self) -> None:
        for fd, _ in self.hang_ups.poll(0):
            connection = self.unread[fd]
            self.stop_watching(connection)
            connection.give_up()

    def say_stopping(self) -> None:
        for connection in list(self.connections):
            if not connection.has_asked_to_stop and (connection.in_flight or connection.readers):
                connection.send(protocol.notification("stopping", {}))

    async def close(self) -> None:
        for path in list(self.listeners):
            self.stop_listening(path)
        for connection in list(self.connections):
            connection.hang_up()
        self.unread.clear()
        self.loop.remove_reader(self.hang_ups.fileno())
        self.hang_ups.close()


class Connection(asyncio.Protocol):
    def __init__(self, server: Server, job: int | None) -> None:
        self.server = server
        self.job = job
        self.buffer = bytearray()
        self.transport: asyncio.Transport | None = None
        self.tasks: set[asyncio.Task[Any]] = set()
        self.readers: set[Reader] = set()
        self.in_flight = 0
        self.has_spoken = False
        self.has_asked_to_stop = False
        self.has_finished = False
        self.can_write = asyncio.Event()
        self.can_write.set()
        self.patience = server.loop.call_later(protocol.FIRST_BYTE_S, self._on_silence)

    # --- asyncio's side -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.fd = int(transport.get_extra_info("socket").fileno())

    def data_received(self, data: bytes) -> None:
        if not self.has_spoken:
            self.has_spoken = True
            self.patience.cancel()
        self.buffer += data
        self._take_lines()

    def pause_writing(self) -> None:
        self.can_write.clear()

    def resume_writing(self) -> None:
        self.can_write.set()

    def eof_received(self) -> bool:
        """Answers still go out to a client that has finished asking (nc -N)."""
        self.has_finished = True
        if not self.tasks and not self.readers:
            return False
        self.server.watch_for_hang_up(self)
        return True

    def connection_lost(self, _: Exception | None) -> None:
        self.patience.cancel()
        self.buffer.clear()  # what it asked beyond the limit is not begun
        self.server.stop_watching(self)
        self.server.connections.discard(self)
        for reader in self.readers:
            self.server.feed.forget(reader)
        for task in self.tasks - self.server.acting:
            task.cancel()
        self.can_write.set()

    # --- ours -----------------------------------------------------------------------------------------------

    def is_silent(self) -> bool:
        return not self.has_spoken

    def is_idle(self) -> bool:
        return self.in_flight == 0 and not self.readers

    def _on_silence(self) -> None:
        if not self.has_spoken:
            self.give_up()

    def give_up(self) -> None:
        self.server.connections.discard(self)
        if self.transport is not None:
            self.transport.abort()

    def hang_up(self) -> None:
        """Close when what is queued has gone out, or has not for a while."""
        if self.transport is not None:
            self.transport.close()
            if self.transport.get_write_buffer_size():
                self.server.loop.call_later(LINGER_S, self.transport.abort)

    def on_task_done(self, task: "asyncio.Task[Any]") -> None:
        self.tasks.discard(task)
        if self.has_finished and not self.tasks and not self.readers:
            self.hang_up()

    def _take_lines(self) -> None:
        while self.in_flight < protocol.MAX_IN_FLIGHT:
            line, newline, rest = self.buffer.partition(b"\n")
            if not newline:
                if len(self.buffer) > protocol.MAX_MESSAGE:
                    self._refuse_oversize()
                break
            if len(line) > protocol.MAX_MESSAGE:
                return self._refuse_oversize()
            self.buffer = rest
            if line.strip():
                self._take(bytes(line))
        if self.transport is not None and not self.transport.is_closing():
            if self.in_flight >= protocol.MAX_IN_FLIGHT:
                self.transport.pause_reading()
                self.server.watch_for_hang_up(self)
            elif not self.has_finished:
                self.transport.resume_reading()
                self.server.stop_watching(self)

    def _refuse_oversize(self) -> None:
        self.buffer.clear()
        self.send(
            protocol.malformed(Malformed(protocol.INVALID_REQUEST, f"message larger than {protocol.MAX_MESSAGE} bytes"))
        )
        self.hang_up()

    def _take(self, line: bytes) -> None:
        try:
            request = protocol.decode(line)
        except Malformed as error:
            self.send(protocol.malformed(error))
            return
        self.in_flight += 1
        task = self.server.loop.create_task(self._answer(request))
        self.tasks.add(task)
        task.add_done_callback(self.on_task_done)
        if request.method not in WAITING:
            self.server.acting.add(task)
            task.add_done_callback(self.server.acting.discard)

    async def _answer(self, request: Request) -> None:
        try:
            answer = protocol.answer(request.id, await self.server.handle(self, request))
        except AgentdError as error:
            answer = protocol.refusal(request.id, error)
        except Exception as error:
            context = {"message": f"{request.method} failed", "exception": error}
            self.server.loop.call_exception_handler(context)
            answer = protocol.refusal(request.id, Fault(f"agentd failed: {type(error).__name__}: {error}"))
        finally:
            self.in_flight -= 1
        if request.id is not None:
            self.send(answer)
        self._take_lines()

    def send(self, line: bytes) -> bool:
        """Queue a line; False (and the connection is cut) when its reader is too far behind."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return False
        if transport.get_write_buffer_size() > protocol.MAX_BACKLOG:  # one long answer alone is no backlog
            transport.write(protocol.notification("lagged", {"backlog": protocol.MAX_BACKLOG}))
            self.hang_up()
            return False
        transport.write(line)
        return True

    async def subscribe(self, owner: str, cursor: int) -> None:
        """Send all events after ``cursor``, and those to come, to this connection."""
        reader = Reader(self.send, owner, cursor)
        self.readers.add(reader)
        with contextlib.suppress(asyncio.CancelledError):
            await self.server.feed.read(reader, self.drained)

    async def drained(self) -> None:
        await self.can_write.wait()
