"""The order in which a full host tier loses its chunks."""

from __future__ import annotations

from random import Random

from saga.cache.prefix_lru import PrefixLru
from saga.cache.tiers import PausedLast
from saga.views import CacheOwner
from saga.vllm_plugin.tier_order import TierOrder


def owner(name, standing="unknown", *, used_s=0.0, expected_s=float("inf")):
    """A session as a policy sees it."""
    facts = CacheOwner(name)
    facts.standing, facts.last_use_s, facts.expected_use_s = standing, used_s, expected_s
    return facts


def stored(order, name, facts, count):
    """So many chunks of a session, written by a call that has ended."""
    keys = [f"{name}{at}".encode() for at in range(count)]
    for key in keys:
        order.insert(key, facts)
        order.free(key)
    order.use(keys, facts)
    return keys


def test_a_context_is_left_with_a_front():
    """Chunks of one session leave from its tail."""
    order = TierOrder(PausedLast())
    keys = stored(order, "a", owner("a"), 5)
    assert order.evict(3) == [keys[4], keys[3], keys[2]]
    order.check()


def test_sessions_leave_by_their_standing():
    """Ended first, then those on the device, then unknown ones, then paused ones by farthest use."""
    order = TierOrder(PausedLast())
    near, far = owner("n", "paused", expected_s=5.0), owner("f", "paused", expected_s=50.0)
    for facts in (near, owner("u"), far, owner("x", "active"), owner("e", "ended")):
        stored(order, facts.session, facts, 1)
    assert order.evict(5) == [b"e0", b"x0", b"u0", b"f0", b"n0"]
    assert len(order) == 0


def test_a_change_of_standing_counts_at_once():
    """A session that ends leaves before one that was worth less until then, and one that comes back after it."""
    order = TierOrder(PausedLast())
    one, other = owner("a", "paused", expected_s=1.0), owner("b", "active")
    stored(order, "a", one, 2)
    stored(order, "b", other, 2)
    one.standing, other.standing = "ended", "paused"
    order.rekey(one)
    order.rekey(other)
    assert order.evict(3) == [b"a1", b"a0", b"b1"]


def test_what_several_sessions_share_leaves_with_the_most_valuable():
    """A shared front stays for the paused session when the ended one goes."""
    order = TierOrder(PausedLast())
    gone, stays = owner("g", "ended"), owner("s", "paused", expected_s=1.0)
    front = stored(order, "front", gone, 2)
    tail = stored(order, "tail", gone, 2)
    order.use(front, stays)
    assert order.evict(2) == tail[::-1]
    assert order.evict(1) == [front[1]]
    order.check()


def test_what_is_copied_or_protected_stays_and_too_little_is_nothing():
    """Chunks that are held or safe are passed over; where too few are left, none goes and the order is as before."""
    order = TierOrder(PausedLast())
    keys = stored(order, "a", owner("a"), 4)
    order.hold(keys[3])
    assert order.evict(3, {keys[2]}) is None
    order.check()
    assert order.evict(2, {keys[2]}) == [keys[1], keys[0]]
    order.free(keys[3])
    assert order.evict(2) == [keys[3], keys[2]]


def test_many_owners_are_forgotten_down_to_a_few():
    """A chunk that everybody uses knows some of its owners only, and never an ended one where it has others."""
    asked: set[CacheOwner] = set()

    class Noting(PausedLast):
        def key(self, owner):
            asked.add(owner)
            return super().key(owner)

    order = TierOrder(Noting())
    (key,) = stored(order, "p", owner("first", "ended"), 1)
    for at in range(30):
        order.use([key], owner(str(at), "paused", expected_s=at))
    order.check()
    asked.clear()
    assert order.evict(1) == [key]
    assert len(asked) == 8
    assert all(each.standing == "paused" for each in asked)


def test_any_walk_keeps_the_laws_and_agrees_with_a_plain_model():
    """Whatever happens, what leaves is worth no more than what stays, and less recent than what stays of its lane."""
    dice = Random(3)
    order = TierOrder(PrefixLru())
    owners = [owner(str(at), used_s=float(at)) for at in range(6)]
    ranks: dict[bytes, int] = {}
    owned: dict[bytes, tuple[CacheOwner, ...]] = {}

    def use(keys, facts):
        order.use(keys, facts)
        for key in reversed(keys):
            owned[key] = tuple(dict.fromkeys((*owned.get(key, ()), facts)))
            ranks[key] = len(ranks) + max(ranks.values(), default=0) + 1

    for step in range(1_500):
        match dice.randrange(6):
            case 0 | 1:
                facts = dice.choice(owners)
                use(stored(order, f"{step}.", facts, dice.randint(1, 4)), facts)
            case 2 if ranks:
                use(dice.sample(sorted(ranks), min(3, len(ranks))), dice.choice(owners))
            case 3 if ranks:
                key = dice.choice(sorted(ranks))
                order.hold(key)
                order.free(key)
            case 4:
                facts = dice.choice(owners)
                facts.last_use_s = float(step)
                order.rekey(facts)
            case _ if ranks:
                gone = order.evict(min(len(ranks), dice.randint(1, 3)))
                stay = ranks.keys() - set(gone)
                worth = {key: max(PrefixLru().key(each) for each in its) for key, its in owned.items()}
                assert all(worth[one] <= worth[other] for one in gone for other in stay)
                assert all(ranks[one] < ranks[other] for one in gone for other in stay if owned[one] == owned[other])
                for key in gone:
                    del ranks[key], owned[key]
        order.check()
    assert len(order) == len(ranks) > 0
    order.clear()
    assert len(order) == 0
    order.check()
