"""A conversation to look at: maths, a table, code, thinking and branches."""

from __future__ import annotations

from localcascade.chat.conversation import Message, Stats

THINKING = """\
We need the roots of x^2 - 5x + 6.

**Trying to factor**
Two numbers with product 6 and sum 5: 2 and 3. So (x - 2)(x - 3).

## Checking both roots
4 - 10 + 6 = 0, good. 9 - 15 + 6 = 0, good.
"""

ROOTS = r"""The roots are **2** and **3**. For any quadratic,

$$x = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a},$$

and here $a = 1$, $b = -5$ and $c = 6$:

1. The discriminant is $b^2 - 4ac = 25 - 24 = 1$.
2. So $x = \frac{5 \pm 1}{2}$.

| Root | Check |
|-----:|:------|
| 2 | $4 - 10 + 6 = 0$ |
| 3 | $9 - 15 + 6 = 0$ |
"""

CODE = """A function for it, with the *stable* form of the formula:

```python
from math import copysign, sqrt

def find_roots(a: float, b: float, c: float) -> tuple[float, float]:
    # Adding numbers of one sign loses no digits.
    q = -(b + copysign(sqrt(b * b - 4 * a * c), b)) / 2
    return q / a, c / q
```

- `find_roots(1, -5, 6)` gives `(3.0, 2.0)`
- it needs a **positive** discriminant
"""

STATS = Stats(84, 40, 96, 310, 0.4, 6.2, 2.1)

SCENE = (
    Message("1", None, "user", r"Solve $x^2 - 5x + 6 = 0$, please."),
    Message("2", "1", "assistant", "Two and three.", state="stopped", note="Stopped.", stats=STATS),
    Message("3", "1", "assistant", ROOTS, THINKING, stats=STATS),
    Message("4", "3", "user", "Now as a Python function."),
    Message("5", "4", "assistant", CODE, "They want code.\n", stats=STATS),
)
