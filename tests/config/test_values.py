"""What one value may be."""

import math
import pickle
from functools import partial
from typing import Literal

import pytest

from dbguard.config.quantities import Duration, Number, Share, Span, Whole
from dbguard.config.values import Choice, Host, Names, Password, Secret, ServerParameters, Substituted, Text, Unfit


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("250ms", 0.25),
        ("5s", 5.0),
        ("1.5s", 1.5),
        ("30min", 1800.0),
        ("1h", 3600.0),
        ("1d", 86400.0),
        ("100us", 0.0001),
        ("5 s", 5.0),
        (5, 5.0),
        (0.5, 0.5),
        (0, 0.0),
        (Substituted("7"), 7.0),
    ],
)
def test_durations_are_seconds_or_bear_a_unit(given: object, seconds: float) -> None:
    assert Duration().parse(given) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "given",
    ["-5s", -1, "5m", "5", "s", "5sec", "1h30min", "", None, True, [], math.nan, math.inf, "none", 10**400, "9" * 400],
    ids=repr,
)
def test_what_is_no_duration_is_refused(given: object) -> None:
    with pytest.raises(Unfit, match="should be a duration such as 250ms, 5s, 30min or 1h, from 0 to 365d"):
        Duration().parse(given)


def test_minutes_and_milliseconds_are_not_confused() -> None:
    with pytest.raises(Unfit, match="write min or ms"):
        Duration().parse("5m")


def test_a_time_without_end_is_none_where_it_is_allowed() -> None:
    assert Duration(none=True).parse("none") == math.inf
    assert Duration(none=True).parse(math.inf) == math.inf


def test_a_time_above_zero_is_not_zero() -> None:
    with pytest.raises(Unfit, match="above 0"):
        Duration(above=True).parse(0)


@pytest.mark.parametrize(("given", "share"), [("20%", 0.2), ("0%", 0.0), ("12.5 %", 0.125), (0.2, 0.2), (1, 1.0)])
def test_shares_are_percentages_or_fractions(given: object, share: float) -> None:
    assert Share().parse(given) == pytest.approx(share)


def test_twenty_is_no_share_and_the_message_tells_of_percent() -> None:
    with pytest.raises(Unfit, match="with % if percent is meant"):
        Share().parse(20)


@pytest.mark.parametrize("given", ["120%", -0.1, "-5%", "x%", True, None, "0.2"], ids=repr)
def test_what_is_no_share_is_refused(given: object) -> None:
    with pytest.raises(Unfit, match="should be a share"):
        Share().parse(given)


@pytest.mark.parametrize("given", ["5432", "5432:30", 5432.0, True, None, 0, 65_536, -1, "", "0x10"], ids=repr)
def test_whole_numbers_are_strict(given: object) -> None:
    with pytest.raises(Unfit, match="should be a whole number from 1 to 65535"):
        Whole(1, 65_535).parse(given)


def test_text_from_the_environment_may_be_a_number() -> None:
    assert Whole(1, 65_535).parse(Substituted("5432")) == 5432
    assert Number(0, 10).parse(Substituted("2.5")) == 2.5


def test_a_word_may_stand_for_a_number() -> None:
    assert Whole(0, 10, word="auto").parse("auto") == "auto"

    with pytest.raises(Unfit, match=r"from 0 to 10, or auto$"):
        Whole(0, 10, word="auto").parse("all")


def test_a_span_does_not_run_backwards() -> None:
    assert Span(above=True).parse(["1s", 15]) == (1.0, 15.0)

    with pytest.raises(Unfit, match="first duration should not be longer"):
        Span().parse(["15s", "1s"])


def test_a_span_tells_what_is_wrong_with_each_end() -> None:
    with pytest.raises(Unfit) as caught:
        Span().parse(["x", "-1s"])

    assert [at for at, _ in caught.value.faults] == [(0,), (1,)]


@pytest.mark.parametrize("given", ["1s", ["1s"], ["1s", "2s", "3s"], {"1s": "2s"}, None], ids=repr)
def test_a_span_is_a_list_of_two(given: object) -> None:
    with pytest.raises(Unfit, match="list of two durations"):
        Span().parse(given)


def test_a_choice_names_the_words() -> None:
    rule = Choice(Literal["wait", "fail"])

    assert rule.parse(Substituted("fail")) == "fail"
    for given in ("Wait", "", None, 1, ["wait"]):
        with pytest.raises(Unfit, match=r"^should be wait or fail$"):
            rule.parse(given)


@pytest.mark.parametrize(
    "host",
    ["db1", "db-1.example.com", "10.0.0.1", "::1", "fe80::1%eth0", "/var/run/postgresql", "däta"],
)
def test_hosts_are_names_addresses_and_socket_directories(host: str) -> None:
    assert Host().parse(host) == host


def test_brackets_are_no_part_of_an_address() -> None:
    assert Host().parse("[::1]") == "::1"


@pytest.mark.parametrize(
    "given",
    ["", "db1:5432", "db1,db2", "app@db1", "db 1", "db1\n", "db1/x", "1::2::3", "[db1]:1", "/a,b", 5, None, "a" * 254],
    ids=repr,
)
def test_a_host_is_one_host_without_port_and_user(given: object) -> None:
    with pytest.raises(Unfit, match="should be"):
        Host().parse(given)


def test_secrets_show_themselves_to_nobody() -> None:
    secret = Secret("hunter2")

    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r}", f"{[secret]}", "%s" % secret]  # noqa: UP031  # each way to text

    assert not any("hunter2" in text for text in shown)
    assert secret.reveal() == "hunter2"


def test_secrets_are_values() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert hash(Secret("a")) == hash(Secret("a"))
    assert pickle.loads(pickle.dumps(Secret("a"))).reveal() == "a"


def test_a_password_is_a_secret_a_function_or_left_out() -> None:
    ask = partial(str, "x")

    assert Password().parse("hunter2") == Secret("hunter2")
    assert Password().parse(ask) is ask
    assert Password().parse(None) is None
    assert Password().parse(Substituted("")) is None


def test_a_password_of_digits_wants_quotes() -> None:
    with pytest.raises(Unfit, match="put it in quotes"):
        Password().parse(12345)


@pytest.mark.parametrize("given", ["a\0b", "a\udcff"], ids=repr)
def test_a_password_that_no_server_can_be_sent_is_refused(given: str) -> None:
    with pytest.raises(Unfit, match="NUL character, or is not UTF-8"):
        Password().parse(given)


def test_text_is_one_line_and_not_empty() -> None:
    assert Text().parse("shop") == "shop"
    for given in ("", "a\n", 5, None, True):
        with pytest.raises(Unfit):
            Text().parse(given)


def test_optional_text_that_the_environment_leaves_empty_is_not_said() -> None:
    assert Text(optional=True).parse(Substituted("")) is None


def test_server_settings_are_given_in_the_servers_spelling() -> None:
    given = {"statement_timeout": 5000, "jit": False, "random_page_cost": 1.1, "app.tenant": "t1"}

    assert ServerParameters().parse(given) == {
        "statement_timeout": "5000",
        "jit": "off",
        "random_page_cost": "1.1",
        "app.tenant": "t1",
    }


@pytest.mark.parametrize("given", [{"a b": 1}, {1: 2}, {"a": None}, {"a": []}, {"a": "\0"}, {"a": 10**5000}, [], "a=b"])
def test_what_is_no_server_setting_is_refused(given: object) -> None:
    with pytest.raises(Unfit):
        ServerParameters().parse(given)


def test_function_names_are_folded_as_the_server_folds_them() -> None:
    assert Names().parse(["Refresh_Totals", "billing.Total"]) == ("refresh_totals", "billing.total")


def test_each_bad_function_name_is_told() -> None:
    with pytest.raises(Unfit) as caught:
        Names().parse(["a b", "fine", 5])

    assert [at for at, _ in caught.value.faults] == [(0,), (2,)]
