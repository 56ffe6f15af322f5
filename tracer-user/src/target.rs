//! What `tracer attach` attaches to: processes, a cgroup, a container, a systemd unit.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::audit::Subject;
use crate::cgroup::{self, CgroupError};

/// How many cgroups are looked at when a name is looked for.
const CGROUPS_MAX: usize = 1 << 16;

/// Why there is nothing to attach to.
#[derive(Debug, Error)]
pub enum TargetError {
    /// No cgroup v2, or none of this process.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// No such process.
    #[error("there is no process {0} in this PID namespace: look it up with ps, or tracer top")]
    NoProcess(u32),
    /// The processes have no cgroup in common that could be attached to.
    #[error("the processes are in different cgroups: attach to one at a time, or to --cgroup")]
    SeveralCgroups,
    /// The directory is no cgroup.
    #[error("{} is no cgroup v2: give its directory, or its path below {}", .0.display(), .1.display())]
    NoCgroup(PathBuf, PathBuf),
    /// Nothing has this name.
    #[error("no {what} called {name} has a cgroup: {advice}")]
    NotFound {
        /// What was looked for.
        what: &'static str,
        /// Its name.
        name: String,
        /// What to do.
        advice: &'static str,
    },
    /// Several have it.
    #[error("{name} is not unique: {}", list(.found))]
    NotUnique {
        /// The name.
        name: String,
        /// What has it.
        found: Vec<PathBuf>,
    },
}

fn list(paths: &[PathBuf]) -> String {
    const LISTED: usize = 5;
    let listed: Vec<String> = paths
        .iter()
        .take(LISTED)
        .map(|it| it.display().to_string())
        .collect();
    let rest = paths.len().saturating_sub(LISTED);
    let more = if rest > 0 {
        format!(" and {rest} more")
    } else {
        String::new()
    };
    format!("{}{more}", listed.join(", "))
}

/// Returns the processes of these PIDs, with what they start. If nothing else runs in their cgroup,
/// it is the cgroup: more is seen of it than of processes among others.
///
/// # Errors
///
/// When there is no such process, or they are in different cgroups.
pub fn of_processes(pids: &[u32]) -> Result<Subject, TargetError> {
    let mut cgroups = HashSet::new();
    for pid in pids {
        let path = cgroup::of_process(&pid.to_string());
        cgroups.insert(path.map_err(|error| match error {
            CgroupError::Io { .. } => TargetError::NoProcess(*pid),
            other => other.into(),
        })?);
    }
    let mut cgroups = cgroups.into_iter();
    let (Some(cgroup), None) = (cgroups.next(), cgroups.next()) else {
        return Err(TargetError::SeveralCgroups);
    };
    let family = family(pids, &parents());
    let are_alone = cgroup != cgroup::mount()?
        && cgroup::processes(&cgroup)
            .iter()
            .all(|process| family.contains(process));
    let mut pids: Vec<u32> = family.into_iter().collect();
    pids.sort_unstable();
    Ok(Subject::Processes {
        cgroup,
        pids,
        are_alone,
    })
}

/// Returns a cgroup by its directory, or by its path below the mount.
///
/// # Errors
///
/// When it is none.
pub fn of_cgroup(path: &Path) -> Result<Subject, TargetError> {
    let mount = cgroup::mount()?;
    let below = mount.join(path.strip_prefix("/").unwrap_or(path));
    let is_cgroup = |path: &Path| path.starts_with(&mount) && path.join("cgroup.procs").exists();
    let absolute = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    [absolute, below]
        .into_iter()
        .find(|path| is_cgroup(path))
        .map(Subject::Cgroup)
        .ok_or_else(|| TargetError::NoCgroup(path.to_owned(), mount))
}

/// Returns the cgroup of a systemd unit.
///
/// # Errors
///
/// When there is none or more than one of this name.
pub fn of_unit(name: &str) -> Result<Subject, TargetError> {
    unique(
        "unit",
        name,
        units(&cgroup::mount()?, name),
        "see systemctl status; it must be running",
    )
}

/// Returns the cgroups of the units of this name.
fn units(top: &Path, name: &str) -> Vec<PathBuf> {
    let unit = if name.contains('.') {
        name.to_owned()
    } else {
        format!("{name}.service")
    };
    find(top, |component| component == unit)
}

/// Returns the cgroup of a container or a pod.
///
/// # Errors
///
/// When there is none or more than one of this name.
pub fn of_container(name: &str) -> Result<Subject, TargetError> {
    let mount = cgroup::mount()?;
    let by_id = containers(&mount, &[name.to_owned()]);
    let found = if by_id.is_empty() {
        containers(&mount, &ids_of_name(Path::new("/var/lib"), name))
    } else {
        by_id
    };
    unique(
        "container",
        name,
        found,
        "give the ID that docker ps, crictl ps or podman ps shows, or a pod's UID; it must be \
         running, and its cgroup be visible here (hostPID and the host's cgroup mount)",
    )
}

/// Returns the cgroups of the containers, or pods, with one of these IDs.
fn containers(top: &Path, ids: &[String]) -> Vec<PathBuf> {
    find(top, |component| {
        ids.iter().any(|id| is_container(component, id))
    })
}

fn unique(
    what: &'static str,
    name: &str,
    mut found: Vec<PathBuf>,
    advice: &'static str,
) -> Result<Subject, TargetError> {
    let name = name.to_owned();
    match (found.pop(), found.is_empty()) {
        (None, _) => Err(TargetError::NotFound { what, name, advice }),
        (Some(path), true) => Ok(Subject::Cgroup(path)),
        (Some(path), false) => {
            found.push(path);
            found.sort();
            Err(TargetError::NotUnique { name, found })
        }
    }
}

/// Whether the last component of a cgroup's path is that of a container with this ID, or of a pod
/// with this UID. The ID may be cut to twelve or more characters, as `docker ps` shows it.
fn is_container(component: &str, id: &str) -> bool {
    const SHORTEST: usize = 12;
    let bare = component
        .trim_end_matches(".scope")
        .trim_end_matches(".slice");
    // systemd's slices are named by the way to them, with dashes between the steps.
    let in_slice = bare.rsplit_once("-pod").map(|(_, uid)| uid);
    if let Some(uid) = in_slice.or_else(|| bare.strip_prefix("pod")) {
        return uid.replace('_', "-") == id;
    }
    let own = ["docker-", "cri-containerd-", "crio-", "libpod-", "nerdctl-"]
        .into_iter()
        .find_map(|prefix| bare.strip_prefix(prefix))
        .unwrap_or(bare);
    let is_id = own.len() == 64 && own.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id && id.len() >= SHORTEST && own.starts_with(id)
}

/// A container in podman's list.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodmanContainer {
    id: String,
    names: Vec<String>,
}

/// What Docker keeps of a container.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct DockerContainer {
    #[serde(rename = "ID")]
    id: String,
    /// With a slash before it.
    name: String,
}

/// Returns the IDs of the containers that Docker or podman keeps under this name in `/var/lib`.
fn ids_of_name(var_lib: &Path, name: &str) -> Vec<String> {
    let storage = var_lib.join("containers/storage");
    let lists = ["overlay-containers", "vfs-containers"].map(|kind| {
        let list = storage.join(kind).join("containers.json");
        read_json::<Vec<PodmanContainer>>(&list)
    });
    let podman = lists.into_iter().flatten();
    let podman = podman.filter(|it| it.names.iter().any(|known| known == name));
    let docker = cgroup::children(&var_lib.join("docker/containers"));
    let docker = docker
        .iter()
        .map(|folder| read_json::<DockerContainer>(&folder.join("config.v2.json")))
        .filter(|it| it.name.trim_start_matches('/') == name);
    podman
        .map(|it| it.id)
        .chain(docker.map(|it| it.id))
        .collect()
}

/// Reads a file of a container engine; a file that is not there, or is not as it should be, has no
/// containers.
fn read_json<T: DeserializeOwned + Default>(path: &Path) -> T {
    let text = fs::read_to_string(path).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// Returns the cgroups below `top` whose name `is_wanted`, those inside of them left out.
fn find(top: &Path, is_wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let (mut found, mut rest, mut seen) = (Vec::new(), vec![top.to_owned()], 0);
    while let Some(path) = rest.pop() {
        seen += 1;
        if seen > CGROUPS_MAX {
            break;
        }
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(&is_wanted) {
            found.push(path);
        } else {
            rest.extend(cgroup::children(&path));
        }
    }
    found
}

/// Returns these processes and those that they started, and so on.
fn family(pids: &[u32], parents: &HashMap<u32, u32>) -> HashSet<u32> {
    let mut family: HashSet<u32> = pids.iter().copied().collect();
    loop {
        let born: Vec<u32> = parents
            .iter()
            .filter(|(process, parent)| family.contains(parent) && !family.contains(process))
            .map(|(process, _)| *process)
            .collect();
        if born.is_empty() {
            return family;
        }
        family.extend(born);
    }
}

/// Returns the parent of each process.
fn parents() -> HashMap<u32, u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let process = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            Some((process, parent(&stat)?))
        })
        .collect()
}

/// Returns the parent's PID of `/proc/PID/stat`, whose second field may contain anything.
fn parent(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn every_runtime_names_its_cgroups_by_the_id() {
        for runtime in ["docker-", "cri-containerd-", "crio-", "libpod-"] {
            assert!(
                is_container(&format!("{runtime}{ID}.scope"), ID),
                "{runtime}"
            );
        }
        assert!(is_container(ID, ID));
        assert!(is_container(ID, &ID[..12]));
        assert!(!is_container(ID, &ID[..11]), "too short to be meant");
        assert!(!is_container(&format!("crio-conmon-{ID}.scope"), ID));
        assert!(!is_container("docker.service", "docker"));
    }

    #[test]
    fn a_pod_is_found_by_its_uid() {
        let uid = "8f1c2d3e-4b5a-6978-8796-a5b4c3d2e1f0";
        let slice = "kubepods-burstable-pod8f1c2d3e_4b5a_6978_8796_a5b4c3d2e1f0.slice";
        assert!(is_container(slice, uid));
        assert!(is_container(&format!("pod{uid}"), uid));
        assert!(!is_container("kubepods-burstable.slice", uid));
    }

    /// Makes a tree of directories, as of cgroups.
    fn tree(paths: &[&str]) -> tempfile::TempDir {
        let top = tempfile::tempdir().unwrap();
        for path in paths {
            fs::create_dir_all(top.path().join(path)).unwrap();
        }
        top
    }

    fn below(top: &tempfile::TempDir, found: &[PathBuf]) -> Vec<String> {
        let relative = |path: &PathBuf| path.strip_prefix(top.path()).unwrap().to_owned();
        let mut found: Vec<String> = found
            .iter()
            .map(|path| relative(path).display().to_string())
            .collect();
        found.sort();
        found
    }

    #[test]
    fn a_unit_is_found_where_systemd_puts_it() {
        let top = tree(&[
            "init.scope",
            "system.slice/nginx.service",
            "system.slice/system-getty.slice/getty@tty1.service",
            "user.slice/user-1000.slice/user@1000.service/app.slice/web.service/nested",
            "user.slice/user-1001.slice/user@1001.service/app.slice/web.service",
        ]);
        let of = |name| below(&top, &units(top.path(), name));
        assert_eq!(of("nginx"), ["system.slice/nginx.service"]);
        assert_eq!(of("nginx.service"), ["system.slice/nginx.service"]);
        assert_eq!(
            of("getty@tty1"),
            ["system.slice/system-getty.slice/getty@tty1.service"]
        );
        assert_eq!(of("system.slice"), ["system.slice"]);
        assert_eq!(of("web").len(), 2, "two users have one each");
        assert!(of("ngin").is_empty());
        let twice = unique("unit", "web", units(top.path(), "web"), "");
        assert!(matches!(twice, Err(TargetError::NotUnique { .. })));
    }

    #[test]
    fn a_container_is_found_where_its_runtime_puts_it() {
        const OTHER: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
        let pod = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1f_2e.slice";
        let paths = [
            format!("libpod_parent/libpod-{ID}"),
            format!("libpod_parent/libpod-conmon-{ID}"),
            format!("{pod}/cri-containerd-{OTHER}.scope"),
            format!("{pod}/cri-containerd-{}.scope", OTHER.replace('f', "0")),
        ];
        let top = tree(&paths.each_ref().map(String::as_str));
        let of = |id: &str| below(&top, &containers(top.path(), &[id.to_owned()]));
        assert_eq!(of(ID), [paths[0].as_str()]);
        assert_eq!(of(&ID[..12]), [paths[0].as_str()]);
        assert_eq!(of(OTHER), [paths[2].as_str()]);
        assert_eq!(of("1f-2e"), [pod], "all containers of the pod");
        assert!(of("web").is_empty());
    }

    #[test]
    fn a_container_is_known_by_the_name_that_docker_or_podman_gave_it() {
        let top = tree(&[
            "containers/storage/overlay-containers",
            "docker/containers/b",
        ]);
        let write = |path: &str, text: &str| fs::write(top.path().join(path), text).unwrap();
        write(
            "containers/storage/overlay-containers/containers.json",
            r#"[{"id":"a","names":["web"],"image":"x"},{"id":"c"}]"#,
        );
        write(
            "docker/containers/b/config.v2.json",
            r#"{"ID":"b","Name":"/shop","State":{"Running":true}}"#,
        );
        assert_eq!(ids_of_name(top.path(), "web"), ["a"]);
        assert_eq!(ids_of_name(top.path(), "shop"), ["b"]);
        assert!(ids_of_name(top.path(), "a").is_empty());
    }

    #[test]
    fn the_parent_is_read_past_any_name() {
        assert_eq!(parent("12 (a) b) S 7 12 12"), Some(7));
        assert_eq!(parent("12 (sh) S"), None);
    }

    #[test]
    fn a_family_is_a_process_and_what_came_of_it() {
        let parents = HashMap::from([(2, 1), (3, 2), (4, 1), (5, 3)]);
        let mut family: Vec<u32> = family(&[2], &parents).into_iter().collect();
        family.sort_unstable();
        assert_eq!(family, [2, 3, 5]);
    }
}
