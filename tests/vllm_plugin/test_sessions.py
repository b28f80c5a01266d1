"""Which sessions are remembered, and how much of them."""

from __future__ import annotations

from saga.vllm_plugin.sessions import SessionKey, SessionTable


def table(**more):
    """A small table, and whom it forgot."""
    forgotten = []
    settings = {"max_sessions": 3, "max_tokens": 100, "max_hashes": 100, "capacity_tokens": 1_000}
    settings |= {"forgotten": forgotten.append} | more
    return SessionTable(**settings), forgotten


def key(name, tenant="", salt=""):
    """A session's key."""
    return SessionKey(tenant, salt, name)


def test_a_session_is_its_tenant_its_salt_and_its_name():
    """Equal names of others are other sessions; all of them are found by the name."""
    sessions, _ = table()
    first = sessions.use(key("s", "one"), 1.0)
    assert sessions.use(key("s", "one"), 2.0) is first
    others = [sessions.use(key("s", "two"), 1.0), sessions.use(key("s", "one", "salt"), 1.0)]
    assert list(sessions.named("s")) == [first, *others]
    assert list(sessions.named("t")) == []
    assert sessions.get(key("s", "one")) is first
    assert sessions.get(key("t")) is None


def test_the_longest_unused_idle_session_makes_room():
    """Those at work stay, whatever their age."""
    sessions, forgotten = table()
    busy = sessions.use(key("busy"), 0.0)
    busy.num_running = 1
    idle = sessions.use(key("idle"), 1.0)
    for at, name in enumerate("abc"):
        sessions.use(key(name), 2.0 + at)
    assert [each.session for each in sessions] == ["busy", "b", "c"]
    assert forgotten[0] is idle


def test_a_session_that_comes_while_all_others_are_at_work_stays():
    """It is about to be at work itself; what it joins is forgotten with it, later."""
    sessions, forgotten = table(max_sessions=1)
    sessions.use(key("busy"), 0.0).num_running = 1
    session = sessions.use(key("new"), 1.0)
    sessions.join_task(session, "t")
    assert (sessions.get(key("new")), forgotten) == (session, [])
    sessions.forget_idle_since(2.0)
    assert (forgotten, sessions._tasks) == ([session], {})


def test_contexts_are_kept_within_the_bound_the_longest_ago_lose_theirs():
    """A context beyond all bounds is not kept at all; hashes and lengths are."""
    sessions, _ = table()
    one, two = sessions.use(key("one"), 0.0), sessions.use(key("two"), 0.0)
    sessions.remember(one, range(60), [b"h"])
    sessions.remember(two, range(60), [b"h"])
    assert (len(one.token_ids), len(two.token_ids), sessions.num_tokens) == (0, 60, 60)
    sessions.remember(two, range(101), [b"h"] * 6)
    assert (len(two.token_ids), two.context_tokens, len(two.block_hashes), sessions.num_tokens) == (0, 101, 6, 0)


def test_hashes_are_kept_within_a_bound_of_their_own():
    """Of many idle sessions with long contexts those that were used last are known; lengths always are."""
    sessions, _ = table(max_sessions=10, max_hashes=10)
    one, two, three = (sessions.use(key(name), 0.0) for name in ("one", "two", "three"))
    for session in (one, two, three):
        sessions.remember(session, range(20), [b"h"] * 5)
    assert [len(each.block_hashes) for each in (one, two, three)] == [0, 5, 5]
    sessions.remember(two, range(40), [b"h"] * 7)
    assert [len(each.block_hashes) for each in (one, two, three)] == [0, 7, 0]
    sessions.remember(three, range(99), [b"h"] * 11)
    assert (len(three.block_hashes), three.context_tokens, sessions.num_hashes) == (0, 99, 7)


def test_forgetting_takes_all_of_it():
    """Its name, its task, its tokens and hashes; twice is once."""
    sessions, forgotten = table()
    session = sessions.use(key("s"), 0.0)
    sessions.join_task(session, "t")
    sessions.remember(session, range(10), [b"h"])
    sessions.forget(session)
    sessions.forget(session)
    assert (len(sessions), sessions.num_tokens, sessions.num_hashes, forgotten) == (0, 0, 0, [session])
    assert (sessions._by_name, sessions._tasks, sessions._remembered, sessions._hashed) == ({}, {}, {}, {})


def test_the_idle_are_forgotten_by_age():
    """Those at work and those used since stay."""
    sessions, _ = table(max_sessions=10)
    for at in range(4):
        sessions.use(key(f"s{at}"), float(at)).num_waiting = int(at == 1)
    sessions.forget_idle_since(3.0)
    assert [each.session for each in sessions] == ["s1", "s3"]


def test_a_session_is_as_old_as_its_task():
    """A sub-agent's session that opens later has its task's age, the task's of another tenant apart."""
    sessions, _ = table()
    parent, child = sessions.use(key("parent", "one"), 1.0), sessions.use(key("child", "one"), 9.0)
    stranger = sessions.use(key("stranger", "two"), 9.0)
    for session in (parent, child, stranger):
        sessions.join_task(session, "t")
    assert (child.arrived_s, stranger.arrived_s) == (1.0, 9.0)
