"""A process that streams messages and says what is on the disk, until somebody kills it.

After each flush it prints, as one line of JSON, the ids, roles and texts that were flushed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from localcascade.history import History


def main() -> None:
    path, tag = Path(sys.argv[1]), sys.argv[2]
    history = History.open(path)
    session = history.create_session(f"session {tag}")
    parent = None
    for n in range(10_000):
        question = history.append(session.id, parent, "user", f"question {tag}.{n}")
        stream = history.begin(session.id, question.id)
        told = {question.id: question.text}
        for i in range(1 + n % 4):
            stream.write(thinking=f"thought {i} ", text=f"word {tag}.{n}.{i} ")
            if i % 2 == n % 2:
                history.flush()
                told[stream.id] = "".join(f"word {tag}.{n}.{k} " for k in range(i + 1))
                say(told)
        if n % 3:
            told[stream.id] = stream.finish().text
            history.flush()
            say(told)
        parent = stream.id


def say(told: dict[str, str]) -> None:
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
