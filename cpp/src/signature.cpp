#include "signature.hpp"

#include <string_view>

#include "failure.hpp"
#include "keys.hpp"

namespace whet::internal {
namespace {

constexpr std::size_t kIdDigits = 32, kSignatureDigits = 2 * kSignatureBytes;
constexpr std::string_view kHead = "whet bundle signature 1\n";
static_assert(kSignatureSize == kHead.size() + kIdDigits + 1 + kSignatureDigits + 1);

bool is_hex(const std::string& text) { return text.find_first_not_of("0123456789abcdef") == std::string::npos; }

std::string bytes_of_hex(const std::string& digits) {
  std::string bytes;
  for (std::size_t i = 0; i < digits.size(); i += 2)
    bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
  return bytes;
}

std::string message(const std::string& key_id, const std::vector<SignedText>& manifests) {
  std::string text = text_of(kHead, key_id, "\n");
  for (const SignedText& manifest : manifests) text += text_of(manifest.sha256, " ", manifest.name, "\n");
  return text;
}

}  // namespace

Signature parse_signature(const std::string& text) {
  const std::size_t id_at = kHead.size(), value_at = id_at + kIdDigits + 1;
  const bool lines = text.size() == kSignatureSize && text.compare(0, id_at, kHead) == 0 &&
                     text[value_at - 1] == '\n' && text.back() == '\n';
  if (lines) {
    const std::string id = text.substr(id_at, kIdDigits), value = text.substr(value_at, kSignatureDigits);
    if (is_hex(id) && is_hex(value)) return {id, bytes_of_hex(value)};
  }
  throw Malformed("is not a signature that this whet knows");
}

void check_signature(const std::optional<Signature>& signature, const std::vector<SignedText>& manifests,
                     const std::vector<Key>& trusted, const std::string& source) {
  std::string ids;
  for (const Key& key : trusted) ids += (ids.empty() ? "" : ", ") + public_key_id(key);
  if (!signature)
    throw Failure(WHET_NOT_TRUSTED, text_of(source, " is not signed; trusted are bundles signed by ", ids));
  bool known = false;
  for (const Key& key : trusted) {
    if (public_key_id(key) != signature->key_id) continue;
    known = true;
    if (is_signed(key, signature->value, message(signature->key_id, manifests))) return;
  }
  if (!known)
    throw Failure(WHET_NOT_TRUSTED, text_of(source, " is signed by the key ", signature->key_id,
                                            ", which is not trusted; trusted: ", ids));
  throw Failure(WHET_NOT_TRUSTED,
                text_of(source, " was changed after it was signed: its signature by the key ", signature->key_id,
                        " does not fit. Do not use it; get it again from whoever signed it"));
}

}  // namespace whet::internal
