"""The client's mux and the emulator's, written apart from each other: any conversation means the same to both."""

from __future__ import annotations

from collections import Counter, defaultdict

from hypothesis import given
from hypothesis import strategies as st

from ssm_proxy.emulator.smux_acceptor import Ended, Opened, Received, SmuxAcceptor
from ssm_proxy.mux.session import MuxSession, StreamClosedByPeer, StreamDataReceived

STEPS = st.lists(
    st.tuples(
        st.sampled_from(("open", "send", "close", "answer", "hang up", "up", "down")),
        st.integers(0, 7),
        st.sampled_from((1, 7, 8, 9, 1000, 1024, 5000, 32767, 32768, 32769, 70_000)),
    ),
    max_size=60,
)


class Conversation:
    """Both ends, with the bytes between them in two pipes."""

    def __init__(self) -> None:
        self.client = MuxSession(keepalive=False, now=0.0)
        self.defects = Counter[str]()
        self.agent = SmuxAcceptor(keepalive=False, now=0.0, defects=self.defects)
        self.down = bytearray()
        self.at_client: list[int] = []
        self.at_agent: list[int] = []
        self.sent: defaultdict[int, bytearray] = defaultdict(bytearray)
        self.arrived: defaultdict[int, bytearray] = defaultdict(bytearray)
        self.answered: defaultdict[int, bytearray] = defaultdict(bytearray)
        self.delivered: defaultdict[int, bytearray] = defaultdict(bytearray)
        self.hung_up: set[int] = set()
        """By the destination, whatever the client was about to send."""

    def step(self, what: str, which: int, size: int) -> None:
        if what == "open":
            self.at_client.append(self.client.open_stream())
        elif what == "send" and self.at_client:
            stream_id = self.at_client[which % len(self.at_client)]
            data = bytes((stream_id + at) % 251 for at in range(min(size, self.client.stream_room(stream_id))))
            self.client.send(stream_id, data)
            self.sent[stream_id] += data
        elif what == "close" and self.at_client:
            stream_id = self.at_client.pop(which % len(self.at_client))
            self.client.close_stream(stream_id)
        elif what == "answer" and self.at_agent:
            stream_id = self.at_agent[which % len(self.at_agent)]
            data = bytes((stream_id * 3 + at) % 251 for at in range(min(size, 32768)))
            self.down += self.agent.header(stream_id, len(data)) + data
            self.answered[stream_id] += data
        elif what == "hang up" and self.at_agent:
            stream_id = self.at_agent[which % len(self.at_agent)]
            self.hung_up.add(stream_id)
            self.agent_closes(stream_id)
        elif what == "up":
            self.pass_up(size)
        elif what == "down":
            self.pass_down(size)

    def agent_closes(self, stream_id: int) -> None:
        self.at_agent.remove(stream_id)
        self.down += self.agent.close(stream_id)

    def pass_up(self, size: int) -> None:
        self.agent.receive(self.client.data_to_send(size))
        for event in self.agent.events():
            if isinstance(event, Opened):
                self.agent.accept()
                self.at_agent.append(event.stream_id)
            elif isinstance(event, Received):
                self.arrived[event.stream_id] += event.data
                self.agent.release(len(event.data))
            else:
                assert isinstance(event, Ended)
                self.agent_closes(event.stream_id)

    def pass_down(self, size: int) -> None:
        data = bytes(self.down[:size])
        del self.down[:size]
        self.client.receive(data, 0.0)
        for event in self.client.events():
            if isinstance(event, StreamDataReceived):
                self.delivered[event.stream_id] += event.data
                self.client.consumed(event.stream_id, len(event.data))
            elif isinstance(event, StreamClosedByPeer):
                assert self.delivered[event.stream_id] == self.answered[event.stream_id]
                self.client.close_stream(event.stream_id)
                self.at_client.remove(event.stream_id)


@given(STEPS)
def test_both_ends_mean_the_same(steps: list[tuple[str, int, int]]) -> None:
    both = Conversation()
    for step in steps:
        both.step(*step)
    while both.client.pending_bytes or both.down:
        both.pass_up(1024)
        both.pass_down(1024)
    assert both.defects == {}
    assert both.agent.waiting_bytes == 0
    assert sorted(both.at_agent) == sorted(both.at_client)
    for stream_id, sent in both.sent.items():
        assert sent.startswith(both.arrived[stream_id])
        if stream_id not in both.hung_up:
            assert both.arrived[stream_id] == sent
    for stream_id in both.at_client:  # open to the end: nothing is lost either way
        assert both.arrived[stream_id] == both.sent[stream_id]
        assert both.delivered[stream_id] == both.answered[stream_id]
