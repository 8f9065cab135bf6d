//! How much memory this process may take: what the machine has, and what the process's control groups (a container's, a
//! systemd unit's `MemoryMax`) leave it of that. Called when KV and adapters are sized, and before weights are packed: the
//! kernel kills who takes more, in the middle of its answers. Reads `/proc` and `/sys/fs/cgroup`, nothing else.

use std::fmt;
use std::fs;
use std::path::{Component, Path};

/// Memory that is assumed to be available where the system does not say, in bytes.
const UNKNOWN: u64 = 4 << 30;

/// In bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// What can be taken now.
    pub(crate) available: u64,
    /// What the process can ever have, swap included; all there is where the system does not say.
    pub(crate) most: u64,
}

/// How one version of control groups tells of memory.
struct Hierarchy {
    /// Where its groups are mounted.
    mounts: &'static [&'static str],
    limit: &'static str,
    used: &'static str,
    /// Pages of files among what is used, which the kernel takes back when it needs them.
    files: [&'static str; 2],
}

const V1: Hierarchy = Hierarchy {
    mounts: &["sys/fs/cgroup/memory"],
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    files: ["total_inactive_file", "total_active_file"],
};

const V2: Hierarchy = Hierarchy {
    mounts: &["sys/fs/cgroup", "sys/fs/cgroup/unified"],
    limit: "memory.max",
    used: "memory.current",
    files: ["inactive_file", "active_file"],
};

/// What a group may swap: of version 2 by itself, of version 1 together with its memory. The other version has no such file.
const SWAP: &str = "memory.swap.max";
const MEMORY_AND_SWAP: &str = "memory.memsw.limit_in_bytes";

impl Memory {
    /// This process's, at this moment.
    pub(crate) fn now() -> Self {
        Self::below(Path::new("/"))
    }

    /// As the files below `root` tell it.
    fn below(root: &Path) -> Self {
        let meminfo = read(&root.join("proc/meminfo"));
        let machine = |field| value(&meminfo, field).map(|kib| kib.saturating_mul(1024));
        let swap = machine("SwapTotal:").unwrap_or(0);
        let all = Self {
            available: machine("MemAvailable:").unwrap_or(UNKNOWN),
            most: machine("MemTotal:").unwrap_or(u64::MAX).saturating_add(swap),
        };
        let within = |all: Self, group: Self| Self {
            available: all.available.min(group.available),
            most: all.most.min(group.most),
        };
        let groups = read(&root.join("proc/self/cgroup"));
        groups.lines().filter_map(group_of).flat_map(|(kind, path)| limits(root, kind, path, swap)).fold(all, within)
    }
}

/// What a line of `/proc/self/cgroup` says of memory: the hierarchy, and the path of the process's group in it.
fn group_of(line: &str) -> Option<(Hierarchy, &Path)> {
    let mut fields = line.splitn(3, ':');
    let (_number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let path = Path::new(path.trim_start_matches('/'));
    match controllers {
        "" => Some((V2, path)),
        several if several.split(',').any(|controller| controller == "memory") => Some((V1, path)),
        _ => None,
    }
}

/// The limits of a group and of all that it is in. A path that is not below the mount, as in some containers, leads to the
/// mount itself, which is the container's group then. The machine has so much `swap`.
fn limits(root: &Path, kind: Hierarchy, path: &Path, swap: u64) -> Vec<Memory> {
    let is_outside = path.components().any(|part| part == Component::ParentDir);
    let path = if is_outside { Path::new("") } else { path };
    let groups = kind.mounts.iter().flat_map(|mount| path.ancestors().map(move |group| root.join(mount).join(group)));
    groups.filter_map(|group| limit(&group, &kind, swap)).collect()
}

fn limit(group: &Path, kind: &Hierarchy, swap: u64) -> Option<Memory> {
    let number = |file| read(&group.join(file)).trim().parse::<u64>().ok();
    let memory = number(kind.limit)?;
    let swap = number(SWAP).unwrap_or(swap).min(swap);
    let most = memory.saturating_add(swap).min(number(MEMORY_AND_SWAP).unwrap_or(u64::MAX));
    let stat = read(&group.join("memory.stat"));
    let files: u64 = kind.files.iter().filter_map(|field| value(&stat, field)).sum();
    let used = number(kind.used).unwrap_or(0).saturating_sub(files);
    Some(Memory { available: memory.saturating_sub(used), most })
}

/// The number behind `field`, which begins a line and ends at a space.
fn value(text: &str, field: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(field)?.split_ascii_whitespace().next()?.parse().ok())
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A worker's part takes more memory than its process can ever have: it would be killed, sooner or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "weights take {} and KV for {kv_tokens} tokens {}, but this process can have no more than {}: lower kv_tokens, give it fewer \
     layers in a [[replica]], or raise its memory limit (MemoryMax, or the container's)",
    Size(*weights),
    Size(*kv),
    Size(*most)
)]
pub struct NoRoom {
    /// Bytes of its weights.
    pub weights: u64,
    /// Bytes of KV.
    pub kv: u64,
    /// Tokens of KV.
    pub kv_tokens: u64,
    /// Bytes of memory and swap.
    pub most: u64,
}

impl NoRoom {
    /// Whether weights and KV can be held at all, by who has `memory`.
    pub(crate) fn check(weights: u64, (kv_tokens, bytes_per_token): (u64, u64), memory: Memory) -> Result<(), Self> {
        let kv = kv_tokens.saturating_mul(bytes_per_token);
        if weights.saturating_add(kv) <= memory.most {
            return Ok(());
        }
        Err(Self { weights, kv, kv_tokens, most: memory.most })
    }
}

/// Bytes, as people read them.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            mib if mib < 1 << 30 => write!(f, "{} MiB", mib.div_ceil(1 << 20)),
            gib => write!(f, "{:.1} GiB", gib as f64 / f64::from(1 << 30)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:  8192 kB\nMemFree: 10 kB\nMemAvailable:   2048 kB\nSwapTotal:  0 kB\n";
    const MIB: u64 = 1 << 20;

    /// What a system with these files tells.
    fn told(files: &[(&str, &str)]) -> Memory {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Memory::below(root.path())
    }

    #[test]
    fn without_control_groups_it_is_the_machine_s() {
        assert_eq!(told(&[("proc/meminfo", MEMINFO)]), Memory { available: 2 * MIB, most: 8 * MIB });
        let swap = MEMINFO.replace("SwapTotal:  0", "SwapTotal: 1024");
        assert_eq!(told(&[("proc/meminfo", &swap)]).most, 9 * MIB);
        assert_eq!(told(&[]), Memory { available: UNKNOWN, most: u64::MAX });
        assert_eq!(told(&[("proc/meminfo", "MemAvailable: lots\nMemTotal:")]).available, UNKNOWN);
    }

    #[test]
    fn of_all_the_groups_that_a_process_is_in_the_tightest_counts() {
        let files = [
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "4:cpu,cpuacct:/x\n3:memory:/a/b\n0::/elsewhere\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1048576\n"),
            ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "900000\n"),
            ("sys/fs/cgroup/memory/a/memory.stat", "cache 5\ntotal_inactive_file 300000\ntotal_active_file 100000\n"),
            ("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "2097152\n"),
            ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "1\n"),
        ];
        assert_eq!(told(&files), Memory { available: MIB - 500_000, most: MIB });
    }

    #[test]
    fn version_two_is_read_too_and_a_container_s_own_mount_is_its_group() {
        for path in ["/", "/system.slice/shoal.service", "/../../not/below/the/mount"] {
            let group = format!("0::{path}\n");
            let files = [
                ("proc/meminfo", MEMINFO),
                ("proc/self/cgroup", group.as_str()),
                ("sys/fs/cgroup/system.slice/memory.max", "max\n"),
                ("sys/fs/cgroup/memory.max", "1048576\n"),
                ("sys/fs/cgroup/memory.current", "48576\n"),
                ("sys/fs/cgroup/memory.stat", "anon 0\ninactive_file 24000\nactive_file 576\n"),
            ];
            assert_eq!(told(&files), Memory { available: MIB - 24_000, most: MIB }, "{path}");
        }
    }

    #[test]
    fn swap_counts_as_far_as_the_group_may_use_it() {
        let swap = MEMINFO.replace("SwapTotal:  0", "SwapTotal: 1024");
        let most = |group, limit, more: (&str, &str)| {
            told(&[("proc/meminfo", &swap), ("proc/self/cgroup", group), (limit, "2097152"), more]).most
        };
        let second = |more| most("0::/", "sys/fs/cgroup/memory.max", ("sys/fs/cgroup/memory.swap.max", more));
        assert_eq!(["max", "1000", "0"].map(second), [3 * MIB, 2 * MIB + 1000, 2 * MIB]);
        let both = "sys/fs/cgroup/memory/memory.memsw.limit_in_bytes";
        let first = |more| most("3:memory:/", "sys/fs/cgroup/memory/memory.limit_in_bytes", (both, more));
        assert_eq!(["9223372036854771712", "2097152"].map(first), [3 * MIB, 2 * MIB]);
    }

    #[test]
    fn what_can_never_fit_is_refused_with_what_to_do() {
        let memory = Memory { available: 0, most: 100 * MIB };
        assert_eq!(NoRoom::check(60 * MIB, (40, MIB), memory), Ok(()), "what is available now comes and goes");
        let refused = NoRoom::check(60 * MIB, (41, MIB), memory).unwrap_err();
        assert!(refused.to_string().starts_with(
            "weights take 60 MiB and KV for 41 tokens 41 MiB, but this process can have no more than 100 MiB: lower kv_tokens"
        ));
        assert!(NoRoom::check(u64::MAX, (u64::MAX, u64::MAX), memory).is_err());
    }
}
