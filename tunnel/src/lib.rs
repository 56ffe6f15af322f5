//! A reverse tunnel over one WebSocket whose every socket the kernel can vouch for.
