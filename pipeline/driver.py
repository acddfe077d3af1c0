"""A backend driven by a thread of its own, so that it costs the caller no time but waiting."""

from typing import Any

from pipeline.ahead import Ahead
from pipeline.backends import Backend, Work


class Driver:
    """A backend whose pixels lie in the host's memory, as a Backend again.

    Feeding DALI and taking from it costs 4 µs an image in batches of 128, handing the result from
    one thread to another a tenth of that. As soon as a step was taken, the next is waited for.
    (On a GPU the consumer's own stream has to take it.) All but `prepare` is called in that
    thread, so Ctrl-C, which Python raises in the main thread, interrupts nothing the backend does.
    """

    still_reading = None  # in the host's memory a step is taken when its bytes were read

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._ahead: Ahead[Any] = Ahead("fullfeed-drive")
        self._num_submitted = 0  # and not yet asked to be taken
        self._is_asked = False  # whether a step is being taken

    def prepare(self, work: Work) -> Any:
        """As the backend has it."""
        return self._backend.prepare(work)

    def submit(self, prepared: Any) -> None:
        """Begins to render; the work's bytes must stay as they are until the step is taken."""
        self._ahead.ask(self._backend.submit, prepared)
        self._num_submitted += 1

    def take(self) -> Any:
        """The oldest step; waits for it, raises what the backend raised."""
        if not self._is_asked:
            self._ask()
        self._is_asked = False
        while (rendered := self._ahead.take()) is None:
            pass  # it was a submit's
        if self._num_submitted:
            self._ask()
        return rendered

    def clear(self) -> None:
        """Forgets all that was submitted."""
        self._num_submitted, self._is_asked = 0, False
        self._ahead.clear(then=self._backend.clear)

    def close(self) -> None:
        """Ends the backend, then the thread."""
        self._ahead.clear(then=self._backend.close)
        self._ahead.close()

    def _ask(self) -> None:
        self._ahead.ask(self._backend.take)
        self._num_submitted -= 1
        self._is_asked = True
