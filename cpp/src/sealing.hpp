// Encrypted bundles: every member of an ordinary bundle, its manifest too, sealed with ChaCha20-Poly1305 (RFC 8439).
//
// A sealed member is cut into chunks of 64 KiB (the last one is shorter, and there is always one), each followed by its
// tag. The number of a chunk, and whether it is the last, are its nonce (the STREAM construction of Hoang, Reyhanitabar,
// Rogaway and Vizar, CRYPTO 2015); the id of the key and the name of the member are associated data; the key is derived
// (HKDF-SHA256, RFC 5869) from the device's key, the salt of the bundle and the name of the member.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "container.hpp"
#include "crypto.hpp"
#include "file.hpp"
#include "manifest.hpp"

namespace whet::internal {

constexpr std::int64_t kSealedFormatVersion = 4;

// What stays readable of an encrypted bundle; `members` are checksum and size of the members as they are sealed.
struct SealHeader {
  TargetSpec target;
  std::string key_id, salt;
  std::map<std::string, Member> members;
};

// Throws Malformed where it is no JSON, Failure(WHET_NEWER_FORMAT), Failure(WHET_DAMAGED) that names the field.
SealHeader parse_seal_header(const std::string& text, const std::string& source);

// Bytes of a sealed member when opened. Throws Malformed for an impossible size.
std::uint64_t plain_size(std::uint64_t sealed);

class MemberCipher {
 public:
  MemberCipher(const Key& key, const std::string& salt, const std::string& name);

  // Chunk `number` of a member of `size` bytes when opened: from `sealed`, which holds the tag too, to `place`.
  // Throws Malformed unless it is this chunk of this member.
  void open(std::uint64_t number, std::uint64_t size, const std::string& sealed, std::uint8_t* place) const;

 private:
  Key key_;
  std::string associated_;
};

// A whole member. Throws Malformed unless it is what was sealed.
std::string open_sealed(const MemberCipher& cipher, const std::string& sealed);

// The members of an encrypted bundle one after the other, as a file; for one thread at a time.
//
// A chunk is opened when something of it is read; no byte is handed out before its chunk's tag was found right.
class OpenedFile : public Readable {
 public:
  using Readable::read;
  // Throws Malformed for a member of an impossible size.
  OpenedFile(std::shared_ptr<const Readable> file, const std::map<std::string, Stored>& sealed, const Key& key,
             const std::string& salt);
  OpenedFile(const OpenedFile&) = delete;
  OpenedFile& operator=(const OpenedFile&) = delete;

  // Where the members are.
  const std::map<std::string, Stored>& members() const { return members_; }
  std::uint64_t size() const override { return places_.empty() ? 0 : places_.back().end; }
  void read(std::uint64_t offset, void* place, std::size_t count) const override;

 private:
  // From `begin` to `end` here, from `offset` on in the other file.
  struct Place {
    std::uint64_t begin, end, offset;
    MemberCipher cipher;
  };
  const std::vector<std::uint8_t>& chunk(const Place& place, std::uint64_t number) const;

  std::shared_ptr<const Readable> file_;
  std::vector<Place> places_;
  std::map<std::string, Stored> members_;
  // The chunk that was opened last.
  mutable const Place* held_place_ = nullptr;
  mutable std::uint64_t held_number_ = 0;
  mutable std::vector<std::uint8_t> held_;
};

}  // namespace whet::internal
