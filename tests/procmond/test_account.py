from daemoneye_procmond.account import LIMIT_COUNT, MAX_AGE_S, AccountNames


class Directory:
    def __init__(self, **names: str) -> None:
        self.names = {int(key[1:]): name for key, name in names.items()}
        self.asked: list[int] = []

    def look_up(self, uid: int) -> str:
        self.asked.append(uid)
        return self.names[uid]


def test_account_name_is_looked_up_once() -> None:
    directory = Directory(u0="root")
    accounts = AccountNames(directory.look_up, lambda: 0.0)
    assert [accounts.name_of(0), accounts.name_of(0)] == ["root", "root"]
    assert directory.asked == [0]


def test_account_name_of_an_unknown_user_is_none_and_remembered() -> None:
    directory = Directory()
    accounts = AccountNames(directory.look_up, lambda: 0.0)
    assert [accounts.name_of(7), accounts.name_of(7)] == [None, None]
    assert directory.asked == [7]


def test_account_name_is_asked_again_when_it_is_old() -> None:
    now_s = 0.0
    directory = Directory(u7="eve")
    accounts = AccountNames(directory.look_up, lambda: now_s)
    assert accounts.name_of(7) == "eve"
    directory.names[7] = "mallory"
    now_s = MAX_AGE_S
    assert accounts.name_of(7) == "mallory"


def test_account_names_stay_bounded() -> None:
    directory = Directory()
    accounts = AccountNames(directory.look_up, lambda: 0.0)
    for uid in range(LIMIT_COUNT + 1):
        accounts.name_of(uid)
    accounts.name_of(0)
    assert directory.asked.count(0) == 2


def test_account_name_that_is_not_utf8_is_escaped() -> None:
    accounts = AccountNames(lambda _uid: "j\udcfcrgen\n", lambda: 0.0)
    assert accounts.name_of(1) == "j\\xfcrgen\\x0a"
