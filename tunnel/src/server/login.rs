//! Logins of visitors at public ports.

use crate::login::Presented;
use crate::server::shared::Shared;

/// Why a visitor is not logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LoginRefused {
    #[error("this port asks for a user and a password")]
    Missing,
    #[error("the user or the password is wrong")]
    Wrong,
}

impl Shared {
    /// Returns the user who has the secret that was presented.
    pub(crate) fn log_in(&self, presented: Option<Presented<'_>>) -> Result<String, LoginRefused> {
        let presented = presented.ok_or(LoginRefused::Missing)?;
        let access = self.admission.access();
        let user = access.users().find(presented);
        user.map(str::to_owned).ok_or(LoginRefused::Wrong)
    }
}
