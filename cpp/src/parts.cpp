#include "parts.hpp"

#include <set>
#include <utility>
#include <vector>

#include "checksum.hpp"
#include "fat.hpp"
#include "signature.hpp"

namespace whet::internal {
namespace {

constexpr std::uint64_t kManifestLimit = std::uint64_t{64} << 20;
const std::set<std::string> kNames = {kLibrary, kWeights, kManifest};
const std::set<std::string> kOptional = {kPacked, kSealedManifest, kSignature};

// What `read` returns; where it finds something malformed, `what` is no whole bundle.
template <typename Read>
auto sound(const std::string& what, Read read) {
  try {
    return read();
  } catch (const Malformed& error) {
    throw Failure(WHET_DAMAGED, text_of(what, " is not a whole bundle: ", error.what(), ". Copy or save it again"));
  }
}

// The members of one bundle, or an index and variants; of those `variants` are the names.
Members read_members(const File& file, std::set<std::string>& variants) {
  std::set<std::string> known = kNames;
  known.insert(kOptional.begin(), kOptional.end());
  known.insert(kVariants.begin(), kVariants.end());
  Members members = read_container(file, {kManifest}, known);
  for (const std::string& name : kVariants)
    if (members.count(name) != 0) variants.insert(name);
  if (!variants.empty() && members.size() != variants.size() + 1 + members.count(kSignature))
    throw Malformed("it has members of one bundle and others of several");
  for (const std::string& name : kNames)
    if (variants.empty() && members.count(name) == 0) throw Malformed(text_of("it has no member ", in_quotes(name)));
  return members;
}

// A member that is so short that it is read whole, unchecked but for the zip's own checksum. Throws Malformed.
std::string short_member(const Readable& file, const Stored& stored) {
  if (stored.size > kManifestLimit) throw Malformed(text_of("claims ", stored.size, " bytes"));
  std::string text = file.read(stored.offset, static_cast<std::size_t>(stored.size));
  if (crc32(text.data(), text.size()) != stored.crc32) throw Malformed("does not have its checksum");
  return text;
}

Part part_of(const std::string& source, std::shared_ptr<const File> file, Members members) {
  Part part{source, std::move(file), std::move(members), {}, {}};
  part.manifest = part.reading(kManifest, [&] { return short_member(*part.file, part.members.at(kManifest)); });
  return part;
}

std::optional<Signature> read_signature(const Part& part) {
  const auto found = part.members.find(kSignature);
  if (found == part.members.end()) return std::nullopt;
  return part.reading(kSignature, [&] {
    const std::uint64_t size = found->second.size;
    if (size != kSignatureSize) throw Malformed(text_of("has ", size, " bytes in place of ", kSignatureSize));
    return std::optional(parse_signature(short_member(*part.file, found->second)));
  });
}

void check_members(const Part& part, const std::map<std::string, Member>& said) {
  bool same = said.size() + 1 + part.members.count(kSignature) == part.members.size();
  for (const auto& [name, member] : said)
    same = same && name != kManifest && name != kSignature && part.members.count(name) != 0;
  if (!same) throw part.damaged(kManifest, "describes other members");
  for (const auto& [name, member] : said)
    if (member.size != part.members.at(name).size)
      throw part.damaged(name,
                         text_of("has ", part.members.at(name).size, " bytes, the manifest says ", member.size));
}

// A variant; a signature in it is of the bundle that it was, and counts for nothing here.
Part variant(const std::string& source, const File& file, const Stored& stored, const std::string& name,
             const TargetSpec& target) {
  std::shared_ptr<const File> inside;
  Members members = sound(text_of(source, ", variant ", in_quotes(target.name), ","), [&] {
    inside = std::make_shared<const File>(file.part(stored.offset, stored.size));
    return read_container(*inside, kNames, kOptional);
  });
  Part found = part_of(source, inside, std::move(members));
  const TargetSpec says = found.encrypted() ? found.seal_header().target : found.parsed().target;
  if (!(says == target))
    throw found.damaged(name, text_of("is for ", in_quotes(says.name), ", which its index does not say"));
  return found;
}

// Of a fat bundle the best variant for this device. Of the others nothing but their targets is read, unless keys are
// trusted: what is signed are the manifests of all.
Part best_part(const Part& whole, const File& file, const std::set<std::string>& names,
               const std::optional<Signature>& signature, const Access& access) {
  const std::vector<TargetSpec> targets =
      whole.reading(kManifest, [&] { return parse_index(whole.manifest, names, whole.source); });
  const auto open = [&](std::size_t number) {
    const std::string& name = kVariants[number];
    return variant(whole.source, file, whole.members.at(name), name, targets[number]);
  };
  if (!access.trusted) return open(best_variant(targets, whole.source));
  std::vector<Part> variants;
  std::vector<SignedText> texts = {{kManifest, hex_sha256(whole.manifest)}};
  for (std::size_t number = 0; number < targets.size(); ++number) {
    variants.push_back(open(number));
    texts.push_back({text_of(kVariants[number], "/", kManifest), hex_sha256(variants.back().manifest)});
  }
  check_signature(signature, texts, *access.trusted, whole.source);
  return std::move(variants[best_variant(targets, whole.source)]);
}

// The manifest of the ordinary bundle. It has the checksums of all other members before they were sealed: with its own
// checksum in the readable manifest, whoever signed that has signed all of them.
std::string sealed_manifest(const Part& part, const SealHeader& header, const Key& key) {
  const Stored& stored = part.members.at(kSealedManifest);
  return part.reading(kSealedManifest, [&] {
    if (stored.size > kManifestLimit) throw Malformed(text_of("claims ", stored.size, " bytes"));
    const std::string sealed = part.file->read(stored.offset, static_cast<std::size_t>(stored.size));
    if (hex_sha256(sealed) != header.members.at(kSealedManifest).sha256) throw Malformed(kNoChecksum);
    return open_sealed(MemberCipher(key, header.salt, kSealedManifest), sealed);
  });
}

// The ordinary bundle in an encrypted one; an ordinary one as it is, without a key.
Part unsealed(Part part, const std::optional<Key>& key) {
  if (!part.encrypted()) {
    if (key)
      throw Failure(WHET_WRONG_KEY, text_of(part.source, " is not encrypted, and a key was given: it takes none"));
    return part;
  }
  const SealHeader header = part.seal_header();
  const std::string found = text_of(part.source, " is encrypted with the key ", printable(header.key_id));
  if (!key) throw Failure(WHET_WRONG_KEY, text_of(found, ": give this key"));
  if (secret_key_id(*key) != header.key_id)
    throw Failure(WHET_WRONG_KEY, text_of(found, "; the key given is ", secret_key_id(*key)));
  part.manifest = sealed_manifest(part, header, *key);
  Members sealed = part.members;
  for (const std::string& name : {kManifest, kSealedManifest, kSignature}) sealed.erase(name);
  const auto opened = part.reading(
      "a member", [&] { return std::make_shared<const OpenedFile>(part.file, sealed, *key, header.salt); });
  part.members = opened->members();
  part.members[kManifest] = {};
  part.file = opened;
  part.readable_target = header.target;
  return part;
}

}  // namespace

SealHeader Part::seal_header() const {
  SealHeader header = reading(kManifest, [&] { return parse_seal_header(manifest, source); });
  check_members(*this, header.members);
  return header;
}

Manifest Part::parsed() const {
  Manifest found = reading(kManifest, [&] { return parse_manifest(manifest, source); });
  check_members(*this, found.members);
  if (readable_target && !(found.target == *readable_target))
    throw damaged(kSealedManifest,
                  text_of("is for ", in_quotes(found.target.name), ", which its readable manifest does not say"));
  return found;
}

Failure Part::damaged(const std::string& member, const std::string& what) const {
  return {WHET_DAMAGED, text_of(source, " is damaged: ", member, " ", what, ". Copy or save it again")};
}

Part open_part(const std::string& path, const Access& access) {
  const auto file = std::make_shared<const File>(path);
  std::set<std::string> variants;
  Members members = sound(path, [&] { return read_members(*file, variants); });
  Part whole = part_of(path, file, std::move(members));
  const std::optional<Signature> signature = read_signature(whole);
  if (!variants.empty()) return unsealed(best_part(whole, *file, variants, signature, access), access.key);
  if (access.trusted)
    check_signature(signature, {{kManifest, hex_sha256(whole.manifest)}}, *access.trusted, path);
  return unsealed(std::move(whole), access.key);
}

}  // namespace whet::internal
