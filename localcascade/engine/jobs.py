"""Requests that need the whole context for themselves: logits, speed, what a collector hears."""

from __future__ import annotations

from collections.abc import Callable

from localcascade.engine.collector import Collector
from localcascade.engine.measuring import measure_speed, read_peak_bytes
from localcascade.engine.model import Model
from localcascade.engine.session import Session
from localcascade.engine.wire import Channel, Frame, SpeedTest, encode_arrays


class Jobs:
    """Answers such requests, each on a session that nobody else uses meanwhile.

    Args:
        channel: Where the answers go.
        model: The loaded model.
    """

    def __init__(self, channel: Channel, model: Model) -> None:
        self._channel, self._model = channel, model
        self._jobs: dict[str, Callable[[Frame, Session], None]] = {
            "logits": self._read_logits,
            "measure": self._measure,
            "collect": self._collect,
            "read_inputs": self._read_inputs,
            "watch": self._watch,
            "read_outer": self._read_outer,
            "disturb": self._disturb,
        }

    def __contains__(self, op: object) -> bool:
        """Tell whether a request is one of these."""
        return op in self._jobs

    def run(self, frame: Frame, session: Session) -> None:
        """Answer a request.

        Args:
            frame: The request.
            session: The context is its alone.

        Raises:
            CascadeError, ValueError: What the client is to be told instead of a result.
        """
        self._jobs[frame["op"]](frame, session)

    def _read_logits(self, frame: Frame, session: Session) -> None:
        logits = session.read_logits(frame["tokens"], frame["first"])
        payload = logits.astype("<f4", copy=False).data.cast("B")
        self._channel.reply(frame, "result", payload, shape=logits.shape)

    def _measure(self, frame: Frame, session: Session) -> None:
        session.clear()
        test, elapsed_s = SpeedTest(**frame["test"]), []
        for one_s in measure_speed(self._model, test):
            elapsed_s.append(one_s)
            self._channel.reply(frame, "progress", n_done=len(elapsed_s))
        self._channel.reply(frame, "result", elapsed_s=elapsed_s, peak_bytes=read_peak_bytes())

    def _collect(self, frame: Frame, session: Session) -> None:
        for n_done in session.run(frame["tokens"]):
            self._collector.check()
            self._channel.reply(frame, "progress", n_tokens=n_done)
        self._channel.reply(frame, "result")

    def _read_inputs(self, frame: Frame, _session: Session) -> None:
        fields, payload = encode_arrays(self._collector.list_tensors())
        self._channel.reply(frame, "result", payload, **fields)

    def _watch(self, frame: Frame, _session: Session) -> None:
        self._collector.watch(frame["matrices"])
        self._channel.reply(frame, "result")

    def _read_outer(self, frame: Frame, _session: Session) -> None:
        packed, count = self._collector.read_outer(frame["matrix"], frame["index"])
        payload = packed.astype("<f4", copy=False).data.cast("B")
        self._channel.reply(frame, "result", payload, count=count)

    def _disturb(self, frame: Frame, _session: Session) -> None:
        self._collector.disturb(frame["matrix"], frame["variances"], frame["seed"])
        self._channel.reply(frame, "result")

    @property
    def _collector(self) -> Collector:
        if self._model.collector is None:
            raise ValueError("the engine was not made to collect")
        return self._model.collector
