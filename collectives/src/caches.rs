//! What the caches of this machine hold.

use std::{fs, sync::OnceLock};

/// Bytes from which on what is touched together does not stay in the last cache: half of it, because there is more in it than
/// that. `usize::MAX` where the system does not say how large it is.
pub(crate) fn outgrown_by() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let sizes = (0..8).filter_map(|index| {
            let size = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
            bytes_of(&fs::read_to_string(size).ok()?)
        });
        sizes.max().map_or(usize::MAX, |bytes| bytes / 2)
    })
}

/// The bytes that the kernel means, such as `32768K`.
fn bytes_of(size: &str) -> Option<usize> {
    let size = size.trim();
    let kib: usize = size.strip_suffix('K')?.parse().ok()?;
    kib.checked_mul(1 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_the_kernel_writes_them() {
        assert_eq!(bytes_of("32768K\n"), Some(32 << 20));
        assert_eq!(bytes_of("48K"), Some(48 << 10));
        for odd in ["", "K", "48", "48M", "-1K"] {
            assert_eq!(bytes_of(odd), None, "{odd}");
        }
    }
}
