#include "crypto.hpp"

#include <limits>
#include <memory>
#include <new>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/pem.h>

#include "failure.hpp"

namespace whet::internal {
namespace {

template <typename T, void (*release)(T*)>
struct Release {
  void operator()(T* object) const { release(object); }
};

using KeyContext = std::unique_ptr<EVP_PKEY_CTX, Release<EVP_PKEY_CTX, EVP_PKEY_CTX_free>>;
using OpenKey = std::unique_ptr<EVP_PKEY, Release<EVP_PKEY, EVP_PKEY_free>>;
using Digest = std::unique_ptr<EVP_MD_CTX, Release<EVP_MD_CTX, EVP_MD_CTX_free>>;
using Cipher = std::unique_ptr<EVP_CIPHER_CTX, Release<EVP_CIPHER_CTX, EVP_CIPHER_CTX_free>>;

// Neither data nor a key can make these calls fail: there is no memory, or libcrypto lacks the algorithm (FIPS mode).
void require(bool worked) {
  if (!worked)
    throw Failure(WHET_NO_CRYPTOGRAPHY, "libcrypto refuses Ed25519, ChaCha20-Poly1305 or HKDF: use one that has them");
}

const std::uint8_t* bytes_of(const std::string& text) { return reinterpret_cast<const std::uint8_t*>(text.data()); }

int length_of(std::size_t size) {
  if (size > static_cast<std::size_t>(std::numeric_limits<int>::max())) throw std::bad_alloc();
  return static_cast<int>(size);
}

}  // namespace

bool has_crypto() { return true; }

bool is_signed(const Key& key, const std::string& signature, const std::string& message) {
  // Bytes that are no point of the curve are no key, and nobody's signature fits them.
  const OpenKey opened(EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, key.data(), key.size()));
  if (!opened) return false;
  const Digest digest(EVP_MD_CTX_new());
  require(digest && EVP_DigestVerifyInit(digest.get(), nullptr, nullptr, nullptr, opened.get()) == 1);
  return EVP_DigestVerify(digest.get(), bytes_of(signature), signature.size(), bytes_of(message), message.size()) == 1;
}

Key public_key_of_pem(const std::string& text) {
  const std::unique_ptr<BIO, decltype(&BIO_free)> memory(BIO_new_mem_buf(text.data(), length_of(text.size())), BIO_free);
  require(memory != nullptr);
  const OpenKey opened(PEM_read_bio_PUBKEY(memory.get(), nullptr, nullptr, nullptr));
  Key key{};
  std::size_t size = key.size();
  const bool fits = opened && EVP_PKEY_id(opened.get()) == EVP_PKEY_ED25519 &&
                    EVP_PKEY_get_raw_public_key(opened.get(), key.data(), &size) == 1 && size == key.size();
  if (!fits) throw Malformed("is not an Ed25519 public key as PEM");
  return key;
}

Key derived_key(const Key& key, const std::string& salt, const std::string& purpose) {
  const KeyContext context(EVP_PKEY_CTX_new_id(EVP_PKEY_HKDF, nullptr));
  EVP_PKEY_CTX* const hkdf = context.get();
  Key derived{};
  std::size_t size = derived.size();
  require(hkdf != nullptr && EVP_PKEY_derive_init(hkdf) == 1 && EVP_PKEY_CTX_set_hkdf_md(hkdf, EVP_sha256()) == 1 &&
          EVP_PKEY_CTX_set1_hkdf_salt(hkdf, bytes_of(salt), length_of(salt.size())) == 1 &&
          EVP_PKEY_CTX_set1_hkdf_key(hkdf, key.data(), length_of(key.size())) == 1 &&
          EVP_PKEY_CTX_add1_hkdf_info(hkdf, bytes_of(purpose), length_of(purpose.size())) == 1 &&
          EVP_PKEY_derive(hkdf, derived.data(), &size) == 1 && size == derived.size());
  return derived;
}

bool decrypt(const Key& key, const Nonce& nonce, const std::string& associated, const std::uint8_t* sealed,
             std::size_t size, std::uint8_t* place) {
  const Cipher context(EVP_CIPHER_CTX_new());
  EVP_CIPHER_CTX* const cipher = context.get();
  // libcrypto takes the tag through a pointer to what it does not change.
  auto* const tag = const_cast<std::uint8_t*>(sealed + size);
  int done = 0;
  require(cipher != nullptr &&
          EVP_DecryptInit_ex(cipher, EVP_chacha20_poly1305(), nullptr, key.data(), nonce.data()) == 1 &&
          EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_SET_TAG, length_of(kTagBytes), tag) == 1 &&
          EVP_DecryptUpdate(cipher, nullptr, &done, bytes_of(associated), length_of(associated.size())) == 1);
  std::uint8_t none = 0;
  if (size != 0 && EVP_DecryptUpdate(cipher, place, &done, sealed, length_of(size)) != 1) return false;
  return EVP_DecryptFinal_ex(cipher, &none, &done) == 1;
}

}  // namespace whet::internal
