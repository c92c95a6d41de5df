//! `[admin]`: a socket whose path fits, and somebody who may read.

use super::{
    super::{Admin, file, problem::Kind},
    Check,
};

/// `sockaddr_un.sun_path` holds 108 bytes, the last of which is 0 (unix(7)).
const SOCKET_PATH_MAX_BYTES: usize = 107;

impl Check<'_> {
    pub(super) fn admin(&self, written: &file::Admin) -> Admin {
        let socket = self.base.join(&written.socket.value);
        let length = socket.as_os_str().len();
        if length > SOCKET_PATH_MAX_BYTES {
            let text = format!(
                "admin.socket is {length} bytes long with its directory; a socket's path has at \
                 most {SOCKET_PATH_MAX_BYTES}, write a shorter one"
            );
            self.problem(written.socket.place, Kind::BadValue, text);
        }
        if written.allow.value.is_empty() {
            let text = "admin.allow is empty, so nobody can read the metrics; write who may, as in \
                        [\"127.0.0.0/8\"]";
            self.report.warning(written.allow.place, text);
        }
        let group = written.group.as_ref().map(|group| group.value.clone());
        Admin { socket, group, metrics: written.metrics.value, allow: written.allow.value.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::fake::{Fake, small};

    #[test]
    fn the_path_of_the_socket_fits_where_the_kernel_keeps_it() {
        for (length, fits) in [(SOCKET_PATH_MAX_BYTES, true), (SOCKET_PATH_MAX_BYTES + 1, false)] {
            let socket = format!("/{}", "s".repeat(length - 1));
            let text = small("[xdp]", &format!("[admin]\nsocket = {socket:?}\n[xdp]"));
            assert_eq!(Fake::new().load(&text).is_ok(), fits, "{length}");
        }
    }
}
