-- Rooms that an application service shows in the directory of one of its networks, beside the directory of a local server.
CREATE TABLE network_directory (
    server TEXT NOT NULL,
    service TEXT NOT NULL,
    network TEXT NOT NULL,
    room_nr BIGINT NOT NULL,
    PRIMARY KEY (server, service, network, room_nr)
) CLUSTERED;
