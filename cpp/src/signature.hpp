// The signature of a bundle: a member of three lines, "whet bundle signature 1", the id of the key, and an Ed25519
// signature (RFC 8032) in hexadecimal, over the text
//
//     whet bundle signature 1
//     KEY ID
//     SHA-256 manifest.json
//
// and, of a fat bundle, a line more for the manifest of each variant ("SHA-256 0.whet/manifest.json"). A manifest holds
// the checksums and sizes of all other members. Nothing of the member but the signature is believed.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "crypto.hpp"

namespace whet::internal {

// Bytes of the member.
constexpr std::size_t kSignatureSize = 186;

struct Signature {
  std::string key_id, value;
};

// A manifest by the name under which it is signed.
struct SignedText {
  std::string name, sha256;
};

// Throws Malformed for what is no such member.
Signature parse_signature(const std::string& text);

// Throws Failure(WHET_NOT_TRUSTED) unless one of the trusted keys signed exactly these manifests.
void check_signature(const std::optional<Signature>& signature, const std::vector<SignedText>& manifests,
                     const std::vector<Key>& trusted, const std::string& source);

}  // namespace whet::internal
