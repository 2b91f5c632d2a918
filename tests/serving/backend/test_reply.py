"""The response to a request: Triton is not asked about one that it has sent, nor while it sends it."""

import threading

from serving.backend.reply import Reply


class Sender:
    """As Triton's, with what the test sees of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.is_asked, self.may_tell = threading.Event(), threading.Event()

    def is_cancelled(self) -> bool:
        self.calls.append("asked")
        self.is_asked.set()
        self.may_tell.wait(20)
        self.calls.append("told")
        return False

    def send(self, response: object, flags: int) -> None:
        self.calls.append(f"{response} {flags}")


def test_a_response_is_sent_after_what_was_asked_is_told_and_nothing_is_asked_then() -> None:
    sender = Sender()
    reply = Reply(sender, 1)
    wanted: list[bool] = []
    asking = threading.Thread(target=lambda: wanted.append(reply.is_wanted()))
    asking.start()
    assert sender.is_asked.wait(20)
    sending = threading.Thread(target=lambda: reply.send("response"))
    sending.start()
    sending.join(0.2)
    assert sender.calls == ["asked"]
    sender.may_tell.set()
    asking.join()
    sending.join()
    assert wanted == [True]
    assert not reply.is_wanted()
    assert sender.calls == ["asked", "told", "response 1"]
