// What takes the place of crypto.cpp where libcrypto is missing.
#include "crypto.hpp"
#include "failure.hpp"

namespace whet::internal {
namespace {

[[noreturn]] void missing() {
  throw Failure(WHET_NO_CRYPTOGRAPHY,
                "signed and encrypted bundles need libcrypto, which this runtime was built without: install it "
                "(Debian: libssl-dev) and build again with WHET_WITH_CRYPTO=ON");
}

}  // namespace

bool has_crypto() { return false; }

bool is_signed(const Key&, const std::string&, const std::string&) { missing(); }

Key public_key_of_pem(const std::string&) { missing(); }

Key derived_key(const Key&, const std::string&, const std::string&) { missing(); }

bool decrypt(const Key&, const Nonce&, const std::string&, const std::uint8_t*, std::size_t, std::uint8_t*) {
  missing();
}

}  // namespace whet::internal
