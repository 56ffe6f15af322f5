//! Every message, whole and in pieces.

use std::net::Ipv6Addr;

use proptest::prelude::*;

use crate::socks5::*;

/// Hands `bytes` over in pieces that end at `cuts`, and returns all events and what is left.
///
/// Anna's login with her password is accepted.
fn run(needs_login: bool, bytes: &[u8], cuts: &[usize]) -> (Vec<Event>, Bytes) {
    let mut greeting = Greeting::new(needs_login);
    let mut events = Vec::new();
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    for piece in cuts.windows(2) {
        greeting.receive(&bytes[piece[0]..piece[1]]);
        while let Some(event) = greeting.poll() {
            if let Event::Login { user, password } = &event {
                assert_eq!(greeting.poll(), None);
                greeting.judge_login(user == "anna" && password == "secret");
            }
            events.push(event);
        }
        let over = matches!(
            events.last(),
            Some(Event::Connect(_) | Event::Associate(_) | Event::Refuse(_))
        );
        assert!(over || greeting.input.len() < Greeting::MESSAGE_MAX);
    }
    (events, greeting.into_rest())
}

fn connect(target: &str) -> Event {
    Event::Connect(target.parse().unwrap())
}

#[test]
fn addresses_and_names_become_targets() {
    let methods = [5, 2, 1, 0];
    let mut name = vec![5, 1, 0, 3, 11];
    name.extend_from_slice(b"DB.internal\x01\xbb");
    let mut literal = vec![5, 1, 0, 3, 3];
    literal.extend_from_slice(b"::1\x00\x50");
    let mut v6 = vec![5, 1, 0, 4];
    v6.extend_from_slice(&Ipv6Addr::LOCALHOST.octets());
    v6.extend_from_slice(&[0, 80]);
    for (request, target) in [
        (
            vec![5, 1, 0, 1, 10, 0, 0, 7, 0x1f, 0x90],
            "tcp/10.0.0.7:8080",
        ),
        (name, "tcp/db.internal:443"),
        (literal, "tcp/[::1]:80"),
        (v6, "tcp/[::1]:80"),
    ] {
        let (events, rest) = run(false, &[&methods[..], &request, b"early"].concat(), &[]);
        assert_eq!(events, [Event::Send([5, 0]), connect(target)]);
        assert_eq!(rest, &b"early"[..]);
    }
}

#[test]
fn what_cannot_be_served_is_answered_as_the_rfc_says() {
    let whole = |request: &[u8]| [&[5, 1, 0][..], request].concat();
    for (bytes, refusal, reply) in [
        (vec![6, 1], Refusal::NotSocks, vec![]),
        (b"GET / HTTP/1.1".to_vec(), Refusal::NotSocks, vec![]),
        (vec![5, 0], Refusal::NoMethod, vec![5, 0xff]),
        (vec![5, 2, 1, 2], Refusal::NoMethod, vec![5, 0xff]),
        (
            whole(&[5, 2, 0, 1]),
            Refusal::NoCommand,
            Code::NoCommand.reply(Version::V5).to_vec(),
        ),
        (
            whole(&[5, 4, 0, 1]),
            Refusal::NoCommand,
            Code::NoCommand.reply(Version::V5).to_vec(),
        ),
        (
            whole(&[5, 1, 0, 2]),
            Refusal::NoAddressType,
            Code::NoAddressType.reply(Version::V5).to_vec(),
        ),
        (
            whole(&[5, 1, 0, 1, 1, 2, 3, 4, 0, 0]),
            Refusal::BadAddress,
            Code::Failure.reply(Version::V5).to_vec(),
        ),
        (
            whole(&[5, 1, 0, 3, 0, 0, 80]),
            Refusal::BadAddress,
            Code::Failure.reply(Version::V5).to_vec(),
        ),
        (
            whole(&[5, 1, 0, 3, 2, 0xff, 0xfe, 0, 80]),
            Refusal::BadAddress,
            Code::Failure.reply(Version::V5).to_vec(),
        ),
        (
            whole(&[5, 1, 0, 3, 3, b'a', b':', b'1', 0, 80]),
            Refusal::BadAddress,
            Code::Failure.reply(Version::V5).to_vec(),
        ),
        (whole(&[1]), Refusal::NotSocks, vec![]),
    ] {
        let (events, _) = run(false, &bytes, &[]);
        assert_eq!(events.last(), Some(&Event::Refuse(refusal)), "{bytes:?}");
        assert_eq!(refusal.reply(Version::V5), reply);
    }
}

#[test]
fn where_a_login_is_needed_nothing_else_is_taken() {
    let refused = |bytes: &[u8], refusal| {
        let (events, _) = run(true, bytes, &[]);
        assert_eq!(events.last(), Some(&Event::Refuse(refusal)), "{bytes:?}");
    };
    refused(&[5, 1, 0], Refusal::NoMethod);
    refused(
        b"\x04\x01\x00\x50\x01\x02\x03\x04anna\x00",
        Refusal::NeedsLogin,
    );
    refused(b"\x05\x01\x02\x01\x04anna\x05secre", Refusal::Login);
    refused(b"\x05\x01\x02\x01\x00\x00", Refusal::Login);
    refused(b"\x05\x01\x02\x05\x01\x00\x01", Refusal::Login);
    let (events, _) = run(
        true,
        b"\x05\x02\x00\x02\x01\x04anna\x06secret\x05\x01\x00\x01\x01\x02\x03\x04\x00\x50",
        &[],
    );
    let expected = [
        Event::Send([5, 2]),
        Event::Login {
            user: Bytes::from_static(b"anna"),
            password: Bytes::from_static(b"secret"),
        },
        Event::Send([1, 0]),
        connect("tcp/1.2.3.4:80"),
    ];
    assert_eq!(events, expected);
}

#[test]
fn an_association_says_where_its_datagrams_come_from() {
    let ask = |address: &[u8]| {
        let bytes = [&[5, 1, 0, 5, 3, 0][..], address].concat();
        run(false, &bytes, &[]).0.pop()
    };
    for (address, source) in [
        (&[1, 10, 0, 0, 7, 0x1f, 0x90][..], Some("10.0.0.7:8080")),
        (&[1, 0, 0, 0, 0, 0, 53], Some("0.0.0.0:53")),
        (&[1, 0, 0, 0, 0, 0, 0], None),
        (&[1, 10, 0, 0, 7, 0, 0], None),
        (&[3, 1, b'a', 0, 53], None),
    ] {
        let source = source.map(|source| source.parse().unwrap());
        assert_eq!(ask(address), Some(Event::Associate(source)), "{address:?}");
    }
    assert_eq!(ask(&[2]), Some(Event::Refuse(Refusal::NoAddressType)));
}

#[test]
fn socks4_names_its_target_by_address_or_by_name() {
    let read = |bytes: &[u8]| {
        let mut greeting = Greeting::new(false);
        greeting.receive(bytes);
        let event = greeting.poll();
        (event, greeting.version(), greeting.user_id().clone())
    };
    for (bytes, target, user) in [
        (
            &b"\x04\x01\x00\x50\x0a\x00\x00\x07anna\x00"[..],
            "tcp/10.0.0.7:80",
            "anna",
        ),
        (
            b"\x04\x01\x00\x50\x0a\x00\x00\x07\x00",
            "tcp/10.0.0.7:80",
            "",
        ),
        (
            b"\x04\x01\x01\xbb\x00\x00\x00\x01\x00DB.internal\x00",
            "tcp/db.internal:443",
            "",
        ),
        (
            b"\x04\x01\x01\xbb\x00\x00\x00\xffb\x00::1\x00",
            "tcp/[::1]:443",
            "b",
        ),
    ] {
        let (event, version, user_id) = read(bytes);
        assert_eq!((event, version), (Some(connect(target)), Version::V4));
        assert_eq!(user_id, user);
        let (events, rest) = run(false, &[bytes, b"early"].concat(), &[3, 9, 10]);
        assert_eq!(events, [connect(target)]);
        assert_eq!(rest, &b"early"[..]);
    }
    let long = [&b"\x04\x01\x00\x50\x0a\x00\x00\x07"[..], &[b'a'; 256]].concat();
    for (bytes, refusal) in [
        (&b"\x04\x02\x00\x50"[..], Refusal::NoCommand),
        (b"\x04\x01\x00\x00\x0a\x00\x00\x07\x00", Refusal::BadAddress),
        (
            b"\x04\x01\x00\x50\x00\x00\x00\x01\x00\x00",
            Refusal::BadAddress,
        ),
        (&long, Refusal::BadAddress),
    ] {
        let (event, version, _) = read(bytes);
        assert_eq!(event, Some(Event::Refuse(refusal)), "{bytes:?}");
        assert_eq!(refusal.reply(version), &[0, 91, 0, 0, 0, 0, 0, 0][..]);
    }
    assert_eq!(
        Code::Succeeded.reply(Version::V4),
        &[0, 90, 0, 0, 0, 0, 0, 0][..]
    );
}

proptest! {
    #[test]
    fn pieces_make_no_difference(
        login: bool,
        user in proptest::collection::vec(any::<u8>(), 0..255),
        name in "[a-z0-9.:-]{0,255}",
        early in proptest::collection::vec(any::<u8>(), 0..64),
        cuts in proptest::collection::vec(any::<usize>(), 0..12),
    ) {
        let mut bytes = vec![5, 2, 0, 2];
        if login {
            let (user, password) = if user.len() % 2 == 0 { (&b"anna"[..], &b"secret"[..]) } else { (&user[..], &user[..]) };
            bytes.extend([1, u8::try_from(user.len()).unwrap()]);
            bytes.extend(user);
            bytes.push(u8::try_from(password.len()).unwrap());
            bytes.extend(password);
        }
        bytes.extend([5, 1, 0, 3, u8::try_from(name.len()).unwrap()]);
        bytes.extend(name.as_bytes());
        bytes.extend([1, 1]);
        bytes.extend(&early);
        let (events, rest) = run(login, &bytes, &[]);
        let in_pieces = run(login, &bytes, &cuts);
        prop_assert_eq!(&events, &in_pieces.0);
        if matches!(events.last(), Some(Event::Connect(_))) {
            prop_assert_eq!(&rest, &early);
            prop_assert_eq!(&rest, &in_pieces.1);
        }
    }

    #[test]
    fn pieces_of_socks4_make_no_difference(
        user in "[a-z]{0,300}",
        name in "[a-z0-9.:-]{0,300}",
        last: u8,
        cuts in proptest::collection::vec(any::<usize>(), 0..12),
    ) {
        let mut bytes = vec![4, 1, 0, 80, 0, 0, 0, last];
        for text in [user, name] {
            bytes.extend(text.as_bytes());
            bytes.push(0);
        }
        prop_assert_eq!(run(false, &bytes, &[]).0, run(false, &bytes, &cuts).0);
    }

    #[test]
    fn no_bytes_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..600), cuts in proptest::collection::vec(any::<usize>(), 0..4), login: bool) {
        run(login, &bytes, &cuts);
    }
}
