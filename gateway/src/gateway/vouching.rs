//! Good clients on their way to the ledger, beside the requests.

use std::rc::Rc;

use tokio::sync::mpsc;

use super::control::Control;
use crate::policy::vouch::Voucher;

/// At 32 octets each that is 32 KiB. What finds it full is not sent; the client's next request is.
pub(super) const VOUCHERS_QUEUE: usize = 1_024;

/// Hands on what workers send, until they are gone.
pub(super) async fn follow(control: Rc<Control>, mut vouchers: mpsc::Receiver<Voucher>) {
    let mut batch = Vec::with_capacity(VOUCHERS_QUEUE);
    while vouchers.recv_many(&mut batch, VOUCHERS_QUEUE).await > 0 {
        control.vouch(&batch);
        batch.clear();
    }
}
