use std::os::unix::fs::MetadataExt as _;

use crate::io::tls::authority::*;

fn day(day: u32) -> SystemTime {
    SystemTime::UNIX_EPOCH + DAY * (20_000 + day)
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn content(directory: &Path, name: &str) -> String {
    std::fs::read_to_string(directory.join(name)).unwrap()
}

#[test]
fn what_is_made_once_is_kept_until_it_is_due() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("a/tls");
    let open = |wanted: &[&str], now| Authority::open(&directory, &names(wanted), now).unwrap();
    let first = open(&["Tunnel.example", "10.0.0.1", "::1"], day(0));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    for key in [CA_KEY, SERVER_KEY] {
        assert_eq!(mode(&directory.join(key)), 0o600);
    }
    let server = content(&directory, SERVER);
    assert!(server.ends_with(&content(&directory, CA)));
    let chain = pem::certificates(&first.files().certificate).unwrap();
    assert_eq!(Pin::of(&chain[1]), Some(first.pin()));
    let lives = |certificate: &CertificateDer<'_>| Validity::of(certificate).unwrap().not_after;
    assert_eq!(lives(&chain[0]), day(90));
    assert_eq!(lives(&chain[1]), day(3650));

    // Order and letter case of the names make no difference.
    let again = open(&["0:0::1", "tunnel.EXAMPLE", "10.0.0.1"], day(60));
    assert_eq!(content(&directory, SERVER), server);
    assert_eq!(again.pin(), first.pin());
    assert!(!again.renew(day(60)).unwrap());
    assert!(again.renew(day(61)).unwrap());
    let renewed = content(&directory, SERVER);
    assert_ne!(renewed, server);
    assert!(renewed.ends_with(&content(&directory, CA)));

    open(&["other.example"], day(61));
    let other = content(&directory, SERVER);
    assert_ne!(other, renewed);
    std::fs::remove_file(directory.join(SERVER_KEY)).unwrap();
    open(&["other.example"], day(61));
    assert_ne!(content(&directory, SERVER), other);

    // After nine years the authority has a new certificate, and its old pin.
    let ca = content(&directory, CA);
    let late = open(&["other.example"], day(3300));
    assert_ne!(content(&directory, CA), ca);
    assert_eq!(late.pin(), first.pin());
    assert!(content(&directory, SERVER).ends_with(&content(&directory, CA)));
}

#[test]
fn an_authority_is_never_replaced_in_silence() {
    let root = tempfile::tempdir().unwrap();
    let open = || Authority::open(root.path(), &names(&["a.example"]), day(0));
    let pin = open().unwrap().pin();
    let (ca, key) = (root.path().join(CA), root.path().join(CA_KEY));
    let kept = std::fs::read(&key).unwrap();

    // The certificate can be made again from the key.
    std::fs::remove_file(&ca).unwrap();
    assert_eq!(open().unwrap().pin(), pin);

    std::fs::remove_file(&key).unwrap();
    assert!(matches!(open(), Err(AuthorityError::NoKey(path)) if path == key));

    std::fs::write(&key, "canary").unwrap();
    let error = open().unwrap_err().to_string();
    assert!(error.contains("chmod 600"), "{error}");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    let error = open().unwrap_err();
    assert!(matches!(error, AuthorityError::Foreign { .. }), "{error}");
    assert!(!format!("{error} {error:?}").contains("canary"));

    let another = KeyPair::generate().unwrap().serialize_pem();
    std::fs::write(&key, another).unwrap();
    let error = open().unwrap_err().to_string();
    assert!(error.contains("another"), "{error}");

    std::fs::write(&key, kept).unwrap();
    assert_eq!(open().unwrap().pin(), pin);
}

#[test]
fn an_authority_of_another_program_is_not_used() {
    let root = tempfile::tempdir().unwrap();
    let mut params = ca_params(day(0));
    params.distinguished_name = named("Somebody else");
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    files::write(&root.path().join(CA), &certificate, 0o644).unwrap();
    files::write(&root.path().join(CA_KEY), &key.serialize_pem(), 0o600).unwrap();
    let error = Authority::open(root.path(), &names(&["a.example"]), day(0)).unwrap_err();
    assert!(matches!(error, AuthorityError::Foreign { .. }), "{error}");
    assert!(!root.path().join(SERVER).exists());
}

#[test]
fn names_that_are_none_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let open = |wanted: &[&str]| Authority::open(root.path(), &names(wanted), day(0));
    assert!(matches!(open(&[]), Err(AuthorityError::NoNames)));
    for wrong in ["", "a b", "a:1", "*", "-", "10.0.0.1/8"] {
        let told =
            matches!(open(&["a.example", wrong]), Err(AuthorityError::Name(name)) if name == wrong);
        assert!(told, "{wrong}");
    }
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn a_write_that_was_cut_short_is_done_again() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join(".ca.key.new"), "half of a k").unwrap();
    let open = || Authority::open(root.path(), &names(&["a.example"]), day(0)).unwrap();
    let pin = open().pin();
    assert!(!root.path().join(".ca.key.new").exists());
    // Killed between key and certificate of the server.
    let key = KeyPair::generate().unwrap().serialize_pem();
    files::write(&root.path().join(SERVER_KEY), &key, 0o600).unwrap();
    assert_eq!(open().pin(), pin);
    let files = open().files();
    pem::pair(&files.certificate, &files.key, &provider()).unwrap();
}
