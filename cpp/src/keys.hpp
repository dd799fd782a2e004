// What a bundle is opened with, and the files that keys come from.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "crypto.hpp"

namespace whet::internal {

// The public keys of which one must have signed a bundle (none: it need not be signed), and the key that it is
// encrypted with (none: it must not be).
struct Access {
  std::optional<std::vector<Key>> trusted;
  std::optional<Key> key;

  // Throws Failure: an empty list of trusted keys, or no libcrypto.
  static Access of(const whet_keys* keys);
};

// What bundles name a key by: the first half of a SHA-256, in hexadecimal.
std::string public_key_id(const Key& key);
std::string secret_key_id(const Key& key);

// A PEM file; 32 bytes, raw or as hexadecimal digits. Throw Failure.
Key read_public_key(const std::string& path);
Key read_secret_key(const std::string& path);

}  // namespace whet::internal
