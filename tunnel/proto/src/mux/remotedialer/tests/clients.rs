use crate::mux::remotedialer::tests::*;

fn name(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn add(mux: &mut Mux, text: &'static str) {
    recv(mux, 0, Body::AddClient(name(text)));
}

fn remove(mux: &mut Mux, text: &'static str) {
    recv(mux, 0, Body::RemoveClient(name(text)));
}

fn peer(clients_max: usize) -> Mux {
    let config = Config {
        clients_max,
        ..Config::default()
    };
    core(Side::Server, config)
}

#[test]
fn a_client_is_there_until_the_last_of_its_sessions_is_gone() {
    let mut mux = peer(10);
    for text in ["web/1", "web/2", "web/2", "db/-9223372036854775808"] {
        add(&mut mux, text);
    }
    assert!(mux.has_client("web") && mux.has_client("db") && !mux.has_client("we"));
    remove(&mut mux, "web/1");
    remove(&mut mux, "web/1");
    remove(&mut mux, "nobody/1");
    assert!(mux.has_client("web"));
    remove(&mut mux, "web/2");
    assert!(!mux.has_client("web") && mux.has_client("db"));
    mux.handle_link_lost();
    assert!(!mux.has_client("db"));
}

#[test]
fn what_is_no_client_is_ignored() {
    let mut mux = peer(10);
    for text in [
        "",
        "web",
        "web/",
        "web/x",
        "web/1/2",
        "web/9223372036854775808",
    ] {
        add(&mut mux, text);
        remove(&mut mux, text);
        assert!(!mux.has_client("web"), "{text}");
    }
    recv(&mut mux, 0, Body::AddClient(Bytes::from_static(b"\xff/1")));
    assert_eq!((sent(&mut mux).len(), events(&mut mux).len()), (0, 0));
}

#[test]
fn clients_are_bounded_and_that_is_told_once() {
    let mut mux = peer(2);
    for text in ["a/1", "b/1", "c/1", "a/2", "d/1"] {
        add(&mut mux, text);
    }
    assert_eq!(events(&mut mux), [Event::TooManyClients]);
    assert!(mux.has_client("a") && mux.has_client("b"));
    assert!(!mux.has_client("c") && !mux.has_client("d"));
    remove(&mut mux, "a/1");
    add(&mut mux, "c/1");
    assert!(!mux.has_client("a") && mux.has_client("c"));
}

#[test]
fn only_a_server_that_dialed_us_has_clients() {
    let mut ordinary = core(Side::Server, Config::default());
    add(&mut ordinary, "web/1");
    assert!(!ordinary.has_client("web"));
    assert_eq!(events(&mut ordinary), []);
    let config = Config {
        clients_max: 10,
        ..Config::default()
    };
    let mut dialed = core(Side::Agent, config);
    add(&mut dialed, "web/1");
    assert!(!dialed.has_client("web"));
}

#[test]
fn clients_are_announced_in_order_and_not_when_they_left_before() {
    let mut mux = core(Side::Agent, Config::default());
    mux.announce("web", 1, true);
    mux.announce("web", 2, true);
    mux.announce("web", 1, false);
    assert!(mux.has_transmit());
    assert_eq!(sent(&mut mux), [(0, Body::AddClient(name("web/2")))]);
    mux.announce("web", 3, true);
    mux.announce("web", 2, false);
    let expected = [
        (0, Body::AddClient(name("web/3"))),
        (0, Body::RemoveClient(name("web/2"))),
    ];
    assert_eq!(sent(&mut mux), expected);
    assert!(!mux.has_transmit());
    mux.announce(&"x".repeat(99), 1, true);
    assert_eq!(sent(&mut mux), []);
    mux.announce("web", 4, true);
    mux.end_session(Reason::SessionOver);
    mux.announce("web", 5, true);
    assert_eq!(sent(&mut mux), []);
}

/// A wedged peer held up everyone who wanted to tell it something.
#[test]
fn l30_what_waits_for_a_wedged_peer_is_bounded_by_the_clients_there_are() {
    let mut mux = core(Side::Agent, Config::default());
    let rounds = if cfg!(miri) { 100 } else { 10_000 };
    for key in 0..rounds {
        mux.announce("web", key, true);
        mux.announce("web", key, false);
    }
    assert!(!mux.has_transmit());
    for key in 0..10 {
        mux.announce("web", key, true);
    }
    assert_eq!(sent(&mut mux).len(), 10);
    let rounds = rounds / 10;
    for key in 0..rounds {
        mux.announce("web", 10 + key, true);
        mux.announce("web", key, false);
    }
    // The ten that were told are taken back, and the ten that are left are told.
    assert_eq!(sent(&mut mux).len(), 20);
}
