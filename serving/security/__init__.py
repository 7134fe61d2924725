"""Who may ask, how much and how slowly, and what is held of users: keys, connections, erasing, retention."""
