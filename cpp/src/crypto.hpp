// Cryptography, all of it libcrypto's: Ed25519 (RFC 8032), ChaCha20-Poly1305 (RFC 8439), HKDF-SHA256 (RFC 5869).
//
// Built without libcrypto (WHET_WITH_CRYPTO off), every function but has_crypto throws Failure(WHET_NO_CRYPTOGRAPHY).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "whet/whet.h"

namespace whet::internal {

constexpr std::size_t kTagBytes = 16, kNonceBytes = 12, kSignatureBytes = 64;

using Key = std::array<std::uint8_t, WHET_KEY_BYTES>;
using Nonce = std::array<std::uint8_t, kNonceBytes>;

bool has_crypto();

// Whether the owner of an Ed25519 public key signed the message.
bool is_signed(const Key& key, const std::string& signature, const std::string& message);

// The raw key in the text of a PEM file (SubjectPublicKeyInfo). Throws Malformed for anything else.
Key public_key_of_pem(const std::string& text);

// A key for one purpose, made of a key and a salt.
Key derived_key(const Key& key, const std::string& salt, const std::string& purpose);

// Decrypt `size` bytes and the tag that follows them to `place`. False unless that is what was encrypted with this key,
// nonce and associated data; what is at `place` then must not be used.
bool decrypt(const Key& key, const Nonce& nonce, const std::string& associated, const std::uint8_t* sealed,
             std::size_t size, std::uint8_t* place);

}  // namespace whet::internal
