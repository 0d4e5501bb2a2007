"""A test of the tests: each guard of the scripts is taken out once, and some scenario must notice."""

from __future__ import annotations

import asyncio
import importlib.resources
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from memfold_faults.scenarios import SCENARIOS
from memfold_faults.story import prepare
from redis import Redis

from memfold.local.redis_server import RedisServer
from memfold.store import Store, server

SCRIPTS = importlib.resources.files("memfold.store") / "scripts"
NEVER, ALWAYS = "if false then", "if true then"


class Mutant(NamedTuple):
    """A script with a part replaced, and the scenario that ought to notice first."""

    what: str
    script: str
    old: str
    new: str
    noticed_by: str


MUTANTS = [
    # Appending
    Mutant("no idempotency", "append", "if known[at] then", NEVER, "a_turn_sent_again"),
    Mutant("an id with other content", "append", "if not entry or entry[2][2] ~= turns[at] then", NEVER, "a_turn_sent_again"),
    Mutant("twice in one call", "append", "elseif given[id] then", "elseif false then", "a_turn_sent_again"),
    Mutant("one call, other content", "append", "if turns[given[id]] ~= turns[at] then", NEVER, "a_turn_sent_again"),
    Mutant("numbers given twice", "append", "meta.last + ", "meta.head + ", "numbers_are_never"),
    Mutant("known ids are passed over", "append", "if next(known) or ARGV[12] == '' then", "if ARGV[12] == '' then", "a_turn_sent_again"),
    Mutant("ids that come twice are passed over", "append", "next(known) or ARGV[12] == ''", "next(known)", "a_turn_sent_again"),
    Mutant("no expected revision", "append", "if not expected(meta, ARGV[3]) then", NEVER, "an_append_that_expects"),
    Mutant("no backlog limit", "append", "return {'BACKLOG', int(lag)}", "", "too_many_turns"),
    Mutant("head does not advance with the log", "append", "'head', head, 'last', head", "'last', head", "turns_that_come"),
    Mutant("not marked", "append", "return redis.call('ZADD', KEYS[DIRTY + second], 'NX', now, ARGV[6])", "return 1",
           "turns_that_come"),
    Mutant("marking ends a lease", "append", "KEYS[DIRTY + second], 'NX', now", "KEYS[DIRTY + second], now", "turns_that_come"),
    Mutant("quarantine does not hold", "append", "line[2] and 0 or mark(0)", "mark(0)", "a_quarantined_memory"),
    Mutant("the second line is not marked", "append", "marked_building = mark(SECOND)", "", "a_model_takes_over"),
    Mutant("ids are not noted", "append", "call('HSET', KEYS[IDS], unpack(noted, 1, notes))", "", "a_turn_sent_again"),
    # Claims
    Mutant("attempts not counted", "claim", "fence + 1, attempts + 1", "fence + 1, attempts", "a_claim_is_one"),
    Mutant("no fence", "claim", "fence + 1, attempts + 1", "fence, attempts + 1", "a_claim_is_one"),
    Mutant("lease not set", "claim", "redis.call('ZADD', KEYS[DIRTY], lease, ARGV[2])", "", "a_claim_is_one"),
    Mutant("lease not looked at", "claim", "if tonumber(due) > now then", NEVER, "of_many_who"),
    Mutant("a torn log is folded", "claim", "if redis.call('XLEN', KEYS[LOG]) ~= meta.entries then", NEVER, "a_log_that_lost"),
    Mutant("a repeated claim is another", "claim", "if line[4] ~= ARGV[4] then", ALWAYS, "everything_may"),
    Mutant("holes at the end wait for ever", "claim", "if meta.last > meta.entries and", "if false and", "holes_at_the_end"),
    # Commits
    Mutant("commit: no incarnation", "commit", "meta.incarnation ~= ARGV[2]", "false", "a_commit_of_a_former_life"),
    Mutant("commit: no fence", "commit", "if line[2] ~= ARGV[4] then", NEVER, "a_claim_is_one"),
    Mutant("commit: no compare of applied", "commit", "line[1] ~= ARGV[3] or ", "", "a_claim_commits_once"),
    Mutant("commit: beyond the log", "commit", " or applied > meta.head", "", "a_claim_commits_once"),
    Mutant("commit: a repeated one is lost", "commit", "if line[1] == ARGV[5] then", NEVER, "a_claim_commits_once"),
    Mutant("dirty removed too early", "commit", "if meta.head > applied then", NEVER, "turns_that_come"),
    Mutant("dirty not removed", "commit", "redis.call('ZREM', KEYS[DIRTY], ARGV[14])", "", "a_turn_sent_again"),
    Mutant("the earlier state is not kept", "commit", "redis.call('HSET', KEYS[HISTORY], ARGV[3], before)", "", "earlier_"),
    Mutant("what is thinned out stays", "commit", "redis.call('HDEL', KEYS[HISTORY], ARGV[at])", "", "earlier_"),
    Mutant("attempts stay", "commit", "'attempts', ARGV[16], ", "", "attempts_are_counted"),
    # Giving up, holding on
    Mutant("release: no fence", "release", "line[1] ~= ARGV[3] or ", "", "a_claim_is_one"),
    Mutant("release: no incarnation", "release", "meta.incarnation ~= ARGV[2]", "false", "a_commit_of_a_former_life"),
    Mutant("attempts are not given back", "release", "if ARGV[5] == '1' then", NEVER, "attempts_are_counted"),
    Mutant("no rest", "release", "tonumber(ARGV[4])", "0", "a_released_claim"),
    Mutant("renew: no fence", "renew", "line[1] ~= ARGV[3] or ", "", "a_claim_is_one"),
    Mutant("renew: no incarnation", "renew", "meta.incarnation ~= ARGV[2]", "false", "a_commit_of_a_former_life"),
    Mutant("quarantine: no fence", "quarantine", " or redis.call('HGET', KEYS[LINE], 'fence') ~= ARGV[3]", "", "a_claim_is_one"),
    # Taking out
    Mutant("forget without raising the fence", "restoring", "redis.call('HINCRBY', KEYS[LINE + line], 'fence', 1)", "", "a_skipped"),
    Mutant("forget: the incarnation stays", "removing", "'incarnation', incarnation, ", "", "a_fold_from_before_a_forgetting"),
    Mutant("restored beyond the limit", "restoring", "if sequence <= limit and sequence > found", "if sequence > found",
           "a_fold_from_before_a_forgetting"),
    Mutant("later revisions stay", "restoring", "redis.call('HDEL', KEYS[REVISIONS + line], int(sequence))", "", "a_rollback_leaves"),
    Mutant("later states stay", "restoring", "or (tonumber(field) or 0) > limit", "", "a_rollback_leaves"),
    Mutant("anchors go with what stays", "restoring", "needed['@' .. revision.anchor] = true", "", "forgetting_keeps"),
    Mutant("what is left is not folded", "restoring", "redis.call('ZADD', KEYS[DIRTY + line], int(now_ms()), member)", "",
           "a_fold_from_before_a_forgetting"),
    Mutant("ids stay", "removing", "redis.call('HDEL', KEYS[IDS], unpack(ids))", "", "a_fold_from_before_a_forgetting"),
    Mutant("counts stay", "removing", "meta.count = meta.count - #ids", "", "a_fold_from_before_a_forgetting"),
    Mutant("entries stay", "removing", "redis.call('XDEL', KEYS[LOG], unpack(gone))", "#gone", "a_fold_from_before_a_forgetting"),
    Mutant("never scrubbed", "removing", "redis.call('HSET', KEYS[META], 'unscrubbed', '1')", "", "nothing_of_what"),
    Mutant("half a scrub is used", "removing", "drop_skips()\n  drop_staged()", "drop_skips()", "nothing_of_what"),
    Mutant("quarantine stays", "restoring", "redis.call('HDEL', KEYS[LINE + line], 'quarantined', 'reason')", "", "a_quarantined"),
    Mutant("forgotten twice", "removing", "if not known and meta.incarnation ~= incarnation then", ALWAYS, "everything_may"),
    Mutant("no receipt", "removing", "redis.call('HSET', KEYS[RECEIPTS], incarnation, int(now_ms()) .. ' ' .. receipt)", "",
           "a_removal_answers"),
    Mutant("receipts of other removals go", "removing", "if #known >= 2 * REMEMBERED then", "if #known > 0 then", "a_removal_answers"),
    Mutant("the last append is forgotten", "removing", "note_last_append()\n    meta", "meta", "a_memory_lives"),
    Mutant("forget: any incarnation", "forget", "if meta.incarnation ~= ARGV[3] then", NEVER, "numbers_of_another"),
    Mutant("rollback: any incarnation", "rollback", "meta.incarnation ~= ARGV[3] or ", "", "a_fold_from_before_a_rollback"),
    Mutant("rollback: head stays", "rollback", "meta.head = target", "", "a_fold_from_before_a_rollback"),
    Mutant("rollback over a skip", "rollback", "limit = math.min(limit, turn - 1)", "", "a_rollback_to_before"),
    Mutant("skips stay", "removing", "found[turn] = nil", "", "a_rollback_to_before"),
    Mutant("a note of no turn counts as one", "skip", "note_last_append()", "", "a_memory_lives"),
    # Taking out many
    Mutant("aside: states stay meanwhile", "write_aside", "if ARGV[11] ~= '' and not clean then", NEVER, "readers_get"),
    Mutant("aside: states stay when it is taken up again", "write_aside", "local clean = held()",
           "local clean = redis.call('HEXISTS', KEYS[REWRITE], 'holds') == 1", "folding_goes_on"),
    Mutant("aside: folded again meanwhile", "claim", "if held() then", NEVER, "readers_get"),
    Mutant("aside: never folded again", "restoring", "tonumber(known[2]) > now_ms() - GIVEN_UP_MS", "true", "folding_goes_on"),
    Mutant("aside: what was dropped is not told", "removing", "redis.call('HGET', KEYS[REWRITE], 'holds') or '[]'", "'[]'", "readers_get"),
    Mutant("aside: what goes is copied", "removing", "local goes = runs[at] and tonumber(runs[at]) <= sequence", "local goes = false",
           "many_are"),
    Mutant("aside: too much goes", "removing", "while runs[at] and runs[at + 1] ~= '+' and tonumber(runs[at + 1]) < sequence do",
           "while false do", "many_are"),
    Mutant("aside: notes stay", "removing", "goes = #redis.call('XRANGE', KEYS[FRESH_LOG], turn, turn) == 0", "goes = false",
           "what_is_passed_over"),
    Mutant("aside: what came in meanwhile is lost", "removing", "carry(staged, rest, runs, whole, receipt)", "", "many_are"),
    Mutant("aside: so much came in meanwhile", "removing", "if #rest > most then", NEVER, "much_that"),
    Mutant("aside: the last append is forgotten", "removing", "note_last_append()\n  carry", "carry", "a_memory_lives"),
    Mutant("aside: the log stays", "removing", "exchange(LOG, FRESH_LOG)", "", "many_are"),
    Mutant("aside: ids stay", "removing", "exchange(IDS, FRESH_IDS)", "", "many_are"),
    Mutant("aside: counts stay", "removing", "meta.count - staged.gone_count", "meta.count", "many_are"),
    Mutant("aside: a hole is not noticed any more", "removing", "meta.entries - staged.gone_entries", "redis.call('XLEN', KEYS[LOG])",
           "a_log_that_lost_entries_stays"),
    Mutant("aside: that of another", "removing", "redis.call('HGET', KEYS[REWRITE], 'by') ~= by or ", "", "two_who"),
    Mutant("aside: half a log", "removing", "redis.call('XLEN', KEYS[FRESH_LOG]) ~= staged.entries", "false", "what_was_lost"),
    Mutant("aside: half of the ids", "removing", "redis.call('HLEN', KEYS[FRESH_IDS]) ~= staged.count", "false", "what_was_lost"),
    Mutant("aside: what is half lost stays", "removing", "give_up(by)\n    return 'LOST'", "return 'LOST'", "what_was_lost"),
    Mutant("aside: two at once", "removing", "tonumber(known[2]) > now_ms() - GIVEN_UP_MS", "false", "two_who"),
    Mutant("aside: on top of another's", "removing", "drop_staged()\n  redis.call('HSET', KEYS[REWRITE], 'by', by,",
           "redis.call('HSET', KEYS[REWRITE], 'by', by,", "two_who"),
    Mutant("aside: a page twice", "write_aside", "carry(not written and staged or nil", "carry(staged", "whoever_dies"),
    Mutant("aside: a page too far", "write_aside", "if staged.cursor < cursor then", NEVER, "what_was_lost"),
    Mutant("aside: of a former log", "write_aside", "if meta.incarnation ~= ARGV[3] then", NEVER, "a_log_written_aside"),
    Mutant("aside: scrubbed as well", "scrub", "if not stage('scrub') then", NEVER, "scrubbing_waits"),
    Mutant("skip of what is folded", "skip", "return {'FOLDED'}", "", "a_skipped"),
    Mutant("skip twice", "skip", "if skipped[sequence] then", NEVER, "a_skipped"),
    Mutant("skip: folds in flight win", "skip", "free(line)", "", "a_skipped"),
    Mutant("refold: the damaged state stays", "refold", "restore(SERVING, tonumber(ARGV[5]))", "", "a_damaged"),
    # Deleting, copying, exchanging the model
    Mutant("delete: still due", "delete", "redis.call('ZREM', KEYS[DIRTY + line], ARGV[5])", "", "a_memory_made_anew"),
    Mutant("delete: ids stay", "delete", "KEYS[META], KEYS[LOG], KEYS[IDS], ", "KEYS[META], KEYS[LOG], ", "a_memory_made_anew"),
    Mutant("delete: the line stays", "delete", "KEYS[LINE + line], KEYS[STATE + line], ", "KEYS[STATE + line], ", "a_memory_made_anew"),
    Mutant("fork over a memory", "fork_flip", "if redis.call('EXISTS', KEYS[COPY_META]) == 1 then", NEVER, "a_copy_never"),
    Mutant("fork of what is forgotten", "fork_flip", "redis.call('HEXISTS', KEYS[STAGE], 'bar:' .. ARGV[2]) == 1", "false",
           "a_copy_shows"),
    Mutant("fork made again", "fork_flip", "if remembered then", NEVER, "everything_may"),
    Mutant("fork is not folded on", "fork_flip", "redis.call('ZADD', KEYS[COPY_DIRTY], now, ARGV[7])", "", "a_copy_is_whole"),
    Mutant("cut over too early", "rebuild_cut_over", "return {'BEHIND', int(built), int(meta.head)}", "", "a_model_that_is_behind"),
    Mutant("cut over leaves the old line", "rebuild_cut_over",
           "redis.call('UNLINK', KEYS[LINE], KEYS[STATE], KEYS[HISTORY], KEYS[REVISIONS])", "", "a_model_takes_over"),
    Mutant("rebuild: fences begin anew", "rebuild_start", "'fence', int(now_ms())", "'fence', '0'", "a_rebuild_that_was"),
    Mutant("a rebuild that cannot end", "rebuild_cut_over", "if poison[1] then", NEVER, "a_model_that_cannot"),
    # Operations, looking at everything
    Mutant("operation: nothing noted", "operation_save", "if ARGV[6] ~= '' then\n  redis", "if false then\n  redis", "an_operation_notes"),
    Mutant("audit: all look", "audit_turn", "tonumber(known[2]) > now_ms()", "false", "of_many_one"),
    Mutant("audit: nobody looks any more", "audit_turn", "known[1] ~= ARGV[1] and tonumber(known[2]) > now_ms()", "true", "of_many_one"),
    Mutant("operation: two holders", "operation_lease", "if tonumber(lease) > now then", NEVER, "an_operation_is"),
    Mutant("operation: no fence", "operation_lease", "int(tonumber(fence) + 1)", "fence", "an_operation_is"),
    Mutant("operation: an old holder saves", "operation_save", "if fence ~= ARGV[3] or", "if", "an_operation_is"),
    Mutant("operation: asked for twice", "operation_request", "if known then", NEVER, "an_operation_asked"),
]  # fmt: skip


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One that need not be durable."""
    running = RedisServer.start(tmp_path_factory.mktemp("redis"), appendfsync="no")
    yield running
    running.stop()


@pytest.fixture
def quiet() -> Iterator[None]:
    """Damage is the subject here, not news."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


async def tell(url: str, names: list[str], *, stop_at_first: bool = False) -> dict[str, BaseException]:
    """Which scenarios fail, and how."""
    failed: dict[str, BaseException] = {}
    with Redis.from_url(url) as redis:
        store = await Store.open(url)
        for name in names:
            await prepare(store, redis)
            try:
                async with asyncio.timeout(10):
                    await SCENARIOS[name](store, redis)
            except Exception as error:  # noqa: BLE001 -- whatever it stumbles over, it has noticed
                failed[name] = error
                if stop_at_first:
                    break
        await store.close()
    return failed


@pytest.mark.usefixtures("quiet")
async def test_the_scripts_as_they_are_pass_every_scenario(redis_server: RedisServer) -> None:
    assert await tell(redis_server.url, list(SCENARIOS)) == {}


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.what.replace(" ", "-") for mutant in MUTANTS])
async def test_a_script_without_a_guard_is_caught(redis_server: RedisServer, mutant: Mutant, monkeypatch) -> None:
    monkeypatch.setattr(server, "_lua", mutated(mutant))
    server._script.cache_clear()
    try:
        first = [name for name in SCENARIOS if name.startswith(mutant.noticed_by)]
        assert first, f"no scenario is called {mutant.noticed_by}"
        names = first + [name for name in SCENARIOS if name not in first]
        assert await tell(redis_server.url, names, stop_at_first=True), f"nobody noticed: {mutant.what}"
    finally:
        server._script.cache_clear()


def mutated(mutant: Mutant) -> Callable[[str], str]:
    """Reads scripts, one of them mutated."""

    def read(name: str) -> str:
        text = (SCRIPTS / f"{name}.lua").read_text("utf-8")
        if name != mutant.script:
            return text
        assert mutant.old in text, f"{name}.lua has changed: it no longer says {mutant.old!r}"
        return text.replace(mutant.old, mutant.new)

    return read
