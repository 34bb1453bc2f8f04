# Sourced by the scripts that start and stop the test servers.
# own_folder DIR: says why and fails if somebody else may have put files into DIR, which the scripts read, and source.
own_folder() {
  set -- "${1%"${1##*[!/]}"}"  # with a slash at its end, a link is what it leads to
  local why=
  if [ -L "$1" ]; then why="is a link; name the folder itself"
  elif [ ! -O "$1" ]; then why="belongs to user $(stat -c %u "$1"), not to $EUID"
  elif ((8#$(stat -c %a "$1") & 8#022)); then why="can be written to by others (mode $(stat -c %a "$1"))"
  else return 0; fi
  echo "$1 $why: delete it, or name another folder with -d" >&2
  return 1
}
# make_own_folder DIR: the same, after it was made for this user alone if it is not there.
make_own_folder() {
  set -- "${1%"${1##*[!/]}"}"
  mkdir -p "$(dirname "$1")"
  mkdir -m 700 "$1" 2>/dev/null || [ -d "$1" ] || { echo "$1 cannot be made: name another folder with -d" >&2; return 1; }
  own_folder "$1"
}
