//! Logins of visitors at public ports.

use crate::io::socket::PeerAddr;
use crate::login::{LoginPort, LoginRefused, Presented};
use crate::server::shared::Shared;

impl Shared {
    /// Returns the user who has the secret that was presented.
    pub(crate) async fn log_in(
        &self,
        port: LoginPort,
        from: PeerAddr,
        presented: Option<Presented<'_>>,
    ) -> Result<String, LoginRefused> {
        let access = self.admission.access();
        let logins = &self.logins;
        logins.log_in(access.users(), port, from, presented).await
    }
}
