"""When the owner of channels is told: after the server has confirmed them, and never before."""

from __future__ import annotations

from busq.store.subscriptions import Subscriptions


def test_a_channel_is_news_only_when_the_server_has_confirmed_it() -> None:
    """Who reads the record earlier misses what is published between that and the subscription."""
    book = Subscriptions()
    book.start()
    book.want(b"a")
    assert book.news() == frozenset()
    assert list(book.commands()) == [(b"SUBSCRIBE", [b"a"])]
    assert book.news() == frozenset()
    assert book.answered(b"a", subscribed=True)
    assert book.news() == frozenset({b"a"})
    assert book.news() == frozenset()


def test_after_a_lost_connection_it_is_news_again_and_not_before_the_new_one_has_confirmed_it() -> None:
    book = Subscriptions()
    book.want(b"a")
    for _ in range(2):
        book.start()
        assert book.news() == frozenset()
        assert list(book.commands()) == [(b"SUBSCRIBE", [b"a"])]
        book.answered(b"a", subscribed=True)
        assert book.news() == frozenset({b"a"})
        book.stop()
